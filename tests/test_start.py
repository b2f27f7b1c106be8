"""Imports of a rank before it begins to work; each of many short-lived processes pays for them."""

from __future__ import annotations

import pytest

from tests.processes import run_each

SLOW = ("transformers.modeling_utils", "deepspeed", "evaluate", "sklearn", "optuna", "torch.distributed.tensor")
STAGES = ("finetune", "precompute", "distill", "evaluate", "report", "predict")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Which of these modules each stage imports; the libraries that it may import have been imported before."""
    codes = [
        f"import sys, dtrain.stages.{stage}; print([name for name in {SLOW} if name in sys.modules])"
        for stage in STAGES
    ]
    done = run_each(codes, "import accelerate, datasets", tmp_path_factory.mktemp("imports"))
    assert [one.returncode for one in done] == [0] * len(STAGES), [one.stderr for one in done]
    return {stage: one.stdout.strip() for stage, one in zip(STAGES, done, strict=True)}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_small_models_do_not_import_what_large_ones_need(imported: dict[str, str], stage: str) -> None:
    assert imported[stage] == "[]"
