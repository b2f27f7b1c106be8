"""Stores of teachers that are sharded over 2 and 3 ranks have the bytes of the unsharded teacher's; an error on one
rank ends all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dtrain.knowledge.verify import verify
from dtrain.runfolder import file_fingerprint
from dtrain.training.lockstep import EVERY
from tests.processes import ended, start_ranks

pytestmark = pytest.mark.distributed

WORKER = Path(__file__).with_name("sharded_knowledge_worker.py")
CASES = ("logits", "bf16", "tags", "two shards")


class Run(NamedTuple):
    folder: Path
    facts: list[dict[str, Any]]  # by rank

    def hashes(self, store: str) -> dict[str, str]:
        return {path.name: file_fingerprint(path) for path in sorted((self.folder / store).iterdir())}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    folder = tmp_path_factory.mktemp("stores")
    found = {}
    for ranks in (1, 2, 3):
        own = folder / str(ranks)
        own.mkdir()
        codes, told = ended(start_ranks([WORKER, own], ranks=ranks, CUDA_VISIBLE_DEVICES=""))
        assert codes == [0] * ranks, told
        found[ranks] = Run(own, [json.loads((own / f"facts-{rank}.json").read_text()) for rank in range(ranks)])
    return found


@pytest.fixture(scope="module")
def whole(runs: dict[int, Run]) -> Run:
    return runs[1]


@pytest.fixture(scope="module", params=[2, 3])
def cut(request: pytest.FixtureRequest, runs: dict[int, Run]) -> Run:
    return runs[request.param]


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_the_whole_teacher(whole: Run, cut: Run, case: str) -> None:
    assert [facts[case]["outcome"] for facts in cut.facts] == ["done"] * len(cut.facts)
    assert cut.hashes(case) == whole.hashes(case)
    verify(cut.folder / case)


def test_each_rank_holds_a_slice_and_passes_as_often(whole: Run, cut: Run) -> None:
    ranks = len(cut.facts)
    for case in CASES:
        assert all(facts[case]["cut"] for facts in cut.facts)
        passes = {facts[case]["passes"] for facts in cut.facts}
        assert len(passes) == 1 and passes.pop() < whole.facts[0][case]["passes"] * 0.8
    slices = [facts["logits"]["slice"] for facts in cut.facts]
    assert sum(slices) == whole.facts[0]["whole"] and max(slices) < 1.2 * sum(slices) / ranks


def test_restart_computes_what_is_missing(whole: Run, cut: Run) -> None:
    assert cut.hashes("restarted") == whole.hashes("logits")
    for facts in cut.facts:
        assert facts["restarted"]["outcome"] == "done"
        # One pass determines the widths of the outputs; 2 of 5 shards are missing.
        assert facts["restarted"]["passes"] - 1 <= 0.5 * (facts["logits"]["passes"] - 1)


def test_one_ranks_request_stops_all_and_they_continue(whole: Run, cut: Run) -> None:
    for facts in cut.facts:
        assert facts["stopped"] == {"outcome": "stopped", "passes": 2 * EVERY}
        assert facts["continued"]["outcome"] == "done"
    assert cut.hashes("stopped") == whole.hashes("logits")


def test_one_ranks_nan_ends_all(cut: Run) -> None:
    first, *others = cut.facts
    assert first["nan"]["outcome"].startswith("failed") and "NaN or infinity in the teacher's logits" in str(first)
    assert "rows with id 63" in first["nan"]["outcome"]
    assert [facts["nan"]["outcome"] for facts in others] == ["failed "] * len(others)
    assert len({facts["nan"]["passes"] for facts in cut.facts}) == 1
    assert first["nan"]["passes"] < first["logits"]["passes"]
    assert not (cut.folder / "nan" / "shard-00001.arrow").exists()
    assert not (cut.folder / "nan" / "manifest.json").exists()
