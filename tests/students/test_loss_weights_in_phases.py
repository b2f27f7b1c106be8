"""Weights of losses in phases: VID's regressors and variances, stopped in the middle of a phase and continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dtrain.errors import DtrainError
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.runtime.distributed import World
from dtrain.stages import distill, finetune, precompute, prepare
from dtrain.training import loop, model_job
from dtrain.training.state import TrainState

BERT = {"type": "bert", "layers": 2, "heads": 2}
VID = {"type": "vid", "weight": 0.01}
PHASES = [
    {"name": "layers", "losses": [VID, {"type": "hidden_mse"}], "epochs": 2},
    {"name": "task", "losses": [{"type": "cross_entropy"}, VID], "epochs": 2},
]


def plan_of(root: Path, name: str) -> Plan:
    rows = str(root / "rows.jsonl")
    student = {"model": {**BERT, "hidden": 8, "tokenizer": "t"}, "batch_size": 8, "phases": PHASES}
    recipe = {
        "name": name,
        "output_dir": str(root / "runs"),
        "data": {"train": rows, "valid": rows},
        "teachers": [{"name": "t", "model": {**BERT, "hidden": 12, "vocabulary_size": 100}, "epochs": 1}],
        "students": [{"name": "s", "checkpoint_every": 2, **student}],
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return Plan(load_recipe(str(root / f"{name}.yaml")))


def run(
    plan: Plan, world: World, ended: list[dict[str, torch.Tensor]], fails_at: tuple[str, int] | None = None
) -> None:
    """Run `distill`; stores the weights and the optimizer state at the end of each phase in `ended`, and fails at the
    given step of a phase.
    """
    finish, step = model_job._finish, loop.train_step

    def finished(built: Any, of: Any, world: World) -> Any:
        ended.append(of.job.engine.state())
        return finish(built, of, world)

    def failing(state: TrainState) -> None:
        if fails_at is not None and fails_at[0] in state.job.title and state.position.step == fails_at[1]:
            raise RuntimeError("too hot")
        step(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_job, "_finish", finished)
        patch.setattr(loop, "train_step", failing)
        for stage in (prepare, finetune, precompute, distill):
            stage.run(plan.recipe, world, plan.folder)


def test_vid_is_continued_bit_for_bit_in_each_phase(tmp_path: Path, world: World) -> None:
    rows = [{"text": f"{'ab'[n % 2]} one two {n % 5}", "label": "ab"[n % 2]} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole: list[dict[str, torch.Tensor]] = []
    run(plan_of(tmp_path, "whole"), world, whole)
    stopped, found = plan_of(tmp_path, "stopped"), []
    for phase, at in (("layers", 3), ("task", 5)):  # in the middle of the first epoch and of the second
        with pytest.raises(DtrainError, match="every student failed"):
            run(stopped, world, found, (phase, at))
        assert list(stopped.folder.checkpoints("students", "s").glob(f"*-{phase}/step-*"))
    run(stopped, world, found)
    assert len(found) == len(whole) == 3  # the teacher, and two phases
    for own, expected in zip(found[1:], whole[1:], strict=True):
        assert own.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in own.items())
        of_vid = [name for name in own if "losses.stateful.vid" in name]
        assert any(name.startswith("weight/") and name.endswith("alpha") for name in of_vid)
        assert any(name.startswith("weight/") and ".means." in name for name in of_vid)
        assert any(name.startswith("optimizer/exp_avg/") for name in of_vid)
    spread = next(name for name in of_vid if name.startswith("weight/") and name.endswith("alpha"))
    assert not torch.equal(whole[1][spread], whole[2][spread])
