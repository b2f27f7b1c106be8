"""What a rank imports before it works: each of many short-lived processes pays for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = ("transformers.modeling_utils", "deepspeed", "evaluate", "sklearn", "optuna", "torch.distributed.tensor")


@pytest.mark.parametrize("stage", ["finetune", "precompute", "distill", "evaluate", "report", "predict"])
def test_stages_of_small_models_do_not_import_what_large_ones_need(stage: str) -> None:
    code = f"import sys, dtrain.stages.{stage}; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
