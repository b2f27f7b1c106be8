"""A loss over pairs of rows has the value and the gradient of one process, whichever ranks its rows are on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dtrain.runtime.gather import gather_rows
from tests.distributed.gather_worker import ROWS, gradients
from tests.processes import ended, start_ranks

WORKER = Path(__file__).with_name("gather_worker.py")


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_ranks_have_the_gradient_of_one_process(tmp_path: Path, ranks: int) -> None:
    """Five rows are divided into 3 and 2; 2, 2 and 1; and one each with a rank without rows."""
    codes, told = ended(start_ranks([WORKER, tmp_path], ranks=ranks))
    assert codes == [0] * ranks, told
    found, expected = load_file(tmp_path / "gradients.safetensors"), gradients(0, 1)
    assert found.keys() == expected.keys() and expected["0.weight"].abs().max() > 1e-3
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14)


def test_more_rows_than_room_are_refused() -> None:
    assert gather_rows(torch.ones(2, 3), 4).sum(1).tolist() == [3.0, 3.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=f"{ROWS} rows in room for 2"):
        gather_rows(torch.ones(ROWS, 3), 2)
