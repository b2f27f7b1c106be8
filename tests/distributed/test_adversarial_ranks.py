"""An adversarial step on two ranks has the gradients of one rank, with a single reduction over ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import ended, start_ranks

WORKER = Path(__file__).with_name("adversarial_worker.py")
METHODS = ("fgm", "fgsm", "pgd")
CASES = [f"{way}-{method}" for way in ("ddp", "fsdp2") for method in METHODS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folder with the gradients of each case, by number of ranks."""
    found = {}
    for world, cases in ((1, [f"alone-{method}" for method in METHODS]), (2, CASES)):
        found[world] = tmp_path_factory.mktemp(f"ranks{world}")
        codes, told = ended(start_ranks([WORKER, *cases, found[world]], ranks=world))
        assert codes == [0] * world, told
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(folders: dict[int, Path], case: str) -> None:
    way, method = case.split("-")
    one, two = load_file(folders[1] / f"alone-{method}.safetensors"), load_file(folders[2] / f"{case}.safetensors")
    reductions = int(two.pop("reductions"))
    one.pop("reductions")
    assert one.keys() == two.keys() and len(one) > 40
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6)
    if way == "ddp":
        assert reductions == 1
