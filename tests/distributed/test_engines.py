"""Every engine trains like one plain optimizer, and continues from the checkpoint of every other one on any number of
ranks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ended, start_ranks

pytestmark = pytest.mark.distributed

WORKER = Path(__file__).with_name("engine_worker.py")
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
WAYS = ("ddp", "fsdp2", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")

ALIKE: dict[str, dict[str, Any]] = {
    **{f"{way}-lamb": {"chain": [way], "steps": 10, "clip": 0.05, "accumulation": 2} for way in WAYS},
    **{f"{way}-adamw": {"chain": [way], "steps": 10, "optimizer": "adamw", "clip": 0.05} for way in WAYS[:5]},
    **{f"{way}-rates": {"chain": [way], "steps": 10, "optimizer": "lamb-rates"} for way in WAYS[:5]},
    "zero2-round-robin": {"chain": ["zero2", "zero1"], "steps": 5, "zero": {"round_robin_gradients": True}},
    "every-way-sgd": {"chain": ["zero3", "fsdp2", "zero2", "ddp"], "steps": 3, "optimizer": "sgd"},
}
# Stopped, and continued by a new engine from the checkpoint of the first: on two ranks, where sums have only one order.
AGAIN = {f"{way}-again": {**ALIKE[f"{way}-lamb"], "chain": [way, way], "steps": 5} for way in WAYS[:5]}
LONG = {f"{way}-long": {"chain": [way], "steps": 100, "optimizer": "lamb-slow"} for way in WAYS[:5]}
HALF = {
    f"{way}-{precision}": {"chain": [way], "steps": 10, "precision": precision, "optimizer": "adamw"}
    for way in WAYS[:5]
    for precision in ("bf16", "fp16")
}
OVERFLOW = {
    f"{way}-overflow": {"chain": [way], "steps": 4, "precision": "fp16", "overflow": [1, 2], "skipped": [2]}
    for way in WAYS[:5]
}
AGAIN |= {f"{way}-overflow-again": {**OVERFLOW[f"{way}-overflow"], "chain": [way, way], "steps": 3} for way in WAYS[:5]}
BROKEN = {f"{way}-broken": {"chain": [way, "ddp"], "steps": 3, "mutation": True} for way in ("zero1", "zero3")}
BROKEN |= {name: {**s, "chain": s["chain"][:1] * 2} for name, s in BROKEN.items()}

# A training that changes its engine every three steps and its number of ranks twice: 2, 3, 1.
MOVED = {
    2: {"chain": ["ddp", "zero2", "fsdp2"], "first": 0},
    3: {"chain": ["zero3", "ddp"], "first": 9},
    1: {"chain": ["ddp"], "first": 15},
}
# Saved after 5 steps on 2 ranks, ended on 3.
RESIZED = ("fsdp2", "zero1", "zero2", "zero3")


def settings(ranks: int) -> dict[str, Any]:
    moved: dict[str, Any] = {}
    for optimizer in ("lamb", "adamw"):
        moved[f"moved-{optimizer}"] = {
            **MOVED[ranks],
            "steps": 3,
            "optimizer": optimizer,
            "load": {2: None, 3: f"moved-{optimizer}-2", 1: f"moved-{optimizer}-1"}[ranks],
        }
    if ranks == 1:
        return moved
    for way in RESIZED:
        first = 0 if ranks == 2 else 5
        load = None if ranks == 2 else f"{way}-resized-0"
        moved[f"{way}-resized"] = {"chain": [way], "steps": 5, "first": first, "load": load}
    if ranks == 2:
        moved |= AGAIN
    return {**moved, **ALIKE, **LONG, **HALF, **OVERFLOW, **BROKEN}


def launch(folder: Path, ranks: int) -> dict[str, Any]:
    asked, found = folder / f"settings-{ranks}.json", folder / f"results-{ranks}.json"
    own = {name: {**setting, "folder": str(folder)} for name, setting in settings(ranks).items()}
    asked.write_text(json.dumps(own))
    codes, told = ended(start_ranks([WORKER, asked, found], folder, ranks, **NO_GPU), seconds=900)
    assert codes == [0] * ranks, told[-6000:]
    return json.loads(found.read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """One launch for each number of ranks: starting processes and importing takes longer than training."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("engines")
    return {ranks: launch(folder, ranks) for ranks in (2, 3, 1)}


@pytest.fixture(params=[2, 3], ids=["2-ranks", "3-ranks"])
def of_ranks(request: pytest.FixtureRequest, results: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return results[request.param]


@pytest.mark.parametrize("name", [*ALIKE, *LONG])
def test_trains_like_one_plain_optimizer(of_ranks: dict[str, Any], name: str) -> None:
    result = of_ranks[name]
    assert result["error"] < 1e-5
    assert result["losses"] == pytest.approx(result["undisturbed"], abs=1e-5)
    assert result["norm_error"] < 1e-6
    assert result["agreed"]
    assert result["whole"]


@pytest.mark.parametrize("ranks", [2, 3, 1])
@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_a_training_moves_between_engines_and_world_sizes(
    results: dict[int, dict[str, Any]], ranks: int, optimizer: str
) -> None:
    result = results[ranks][f"moved-{optimizer}"]
    assert result["losses"] == pytest.approx(result["undisturbed"], abs=1e-5)
    assert result["error"] < 1e-5


@pytest.mark.parametrize("way", RESIZED)
def test_saved_on_two_ranks_and_ended_on_three(results: dict[int, dict[str, Any]], way: str) -> None:
    result = results[3][f"{way}-resized"]
    assert result["losses"] == pytest.approx(result["undisturbed"], abs=1e-5)
    assert result["error"] < 1e-5


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_map_of_the_buffers_shows(of_ranks: dict[str, Any], name: str) -> None:
    assert of_ranks[name]["error"] > 1e-3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_rounds_alike_where_the_method_is_the_same(of_ranks: dict[str, Any], precision: str) -> None:
    """DDP and FSDP2 round by autocast; the stages of ZeRO round the weights themselves."""
    ways = {way: of_ranks[f"{way}-{precision}"]["weights"] for way in WAYS[:5]}
    for one, other in (("ddp", "fsdp2"), ("zero1", "zero2")):  # stage 3 adds up ranks in another order
        assert ways[other] == pytest.approx(ways[one], abs=1e-5), (one, other)
    # They differ from float32 only by rounding.
    for way in WAYS[:5]:
        assert of_ranks[f"{way}-{precision}"]["error"] < (0.1 if precision == "bf16" else 0.02)


@pytest.mark.parametrize("way", WAYS[:5])
def test_overflow_on_one_rank_skips_the_step_on_all(of_ranks: dict[str, Any], way: str) -> None:
    result = of_ranks[f"{way}-overflow"]
    assert result["agreed"]
    assert result["applied"] == [True, True, False, True]
    assert result["scales"] == [65536.0, 65536.0, 32768.0, 32768.0]
    assert result["error"] < 0.02  # compared with the run without that step


@pytest.mark.parametrize("way", WAYS[:5])
def test_begun_again_it_is_the_same_bit_for_bit(results: dict[int, dict[str, Any]], way: str) -> None:
    assert results[2][f"{way}-again"]["weights"] == results[2][f"{way}-lamb"]["weights"]


@pytest.mark.parametrize("way", WAYS[:5])
def test_the_loss_scale_goes_on_where_it_was(results: dict[int, dict[str, Any]], way: str) -> None:
    result = results[2][f"{way}-overflow-again"]
    assert result["applied"] == [True, True, False, True, True, True]
    assert result["scales"] == [65536.0, 65536.0, 32768.0, 32768.0, 32768.0, 32768.0]
