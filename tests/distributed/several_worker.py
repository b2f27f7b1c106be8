"""One rank of a student of several tasks under every engine: `several_worker.py RECIPE.yaml RESULTS.json`.

Each engine trains the same student over all ranks; the result is the distance of its final weights from those of one
process, ‖w − w_ref‖ / ‖w_ref − w_start‖.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.recipe.phases import StudentPhase
from dtrain.recipe.training import Student
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import connect, leave
from dtrain.runtime.sharding import Sharding
from dtrain.runtime.stop import StopRequest
from dtrain.stages import prepare
from dtrain.students.phases import phase_jobs
from dtrain.tasks.prepared import PreparedTasks
from dtrain.training.members import Members
from dtrain.training.model_job import train_model
from dtrain.training.phases import train_phases
from tests.distributed.engine_worker import sharding

WAYS = ["ddp", "fsdp2", "zero1", "zero2", "zero3"]


def main() -> None:
    recipe = load_recipe(sys.argv[1])
    world = connect()
    torch.set_num_threads(1)
    plan = Plan(recipe)
    prepare.run(recipe, world, plan.folder)
    members = Members(PreparedTasks.open(recipe, plan.folder), world, plan.folder)
    student, tuned = recipe.students

    def train(way: str, *, together: bool) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        world.sharding = sharding(way, {}) if together else Sharding("ddp")
        job = members.student(student, way, {})
        job.data_parallel = together
        root = plan.folder.root / (way if together else f"alone-{world.rank}")
        job.final, job.checkpoints, job.tensorboard = (root / name for name in ("model", "checkpoints", "tensorboard"))
        train_model(job, world, StopRequest(world, plan.folder.root))
        return load_file(root / "model" / "model.safetensors"), read_json(root / "model" / "history.json")

    def in_phases(way: str, *, together: bool) -> dict[str, Tensor]:
        """Train on all tasks, then on one, with the heads of the others frozen."""
        world.sharding = sharding(way, {}) if together else Sharding("ddp")
        own = Plan(recipe.model_copy(update={"name": f"phases-{way if together else world.rank}"}))
        jobs = phase_jobs(tuned, own, make_job, None)
        for job in jobs:
            job.data_parallel = together
        (*_, last) = train_phases([jobs], world, StopRequest(world, own.folder.root))
        assert last.metrics is not None, last.error
        return load_file(last.job.final / "model.safetensors")

    def make_job(training: Student, phase: StudentPhase, identity: str, order: int, pause: int | None) -> Any:
        return members.student(training, identity, {}, order=order, pause=pause), lambda prepared: prepared

    def distance(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
        names = [name for name in reference if "key.bias" not in name]  # their gradient consists of rounding errors
        apart = sum(float((found[n].double() - reference[n].double()).square().sum()) for n in names)
        moved = sum(float((start[n].double() - reference[n].double()).square().sum()) for n in names)
        return math.sqrt(apart / moved)

    torch.manual_seed(student.seed or 0)
    start = members.student(student, "start", {}).prepare().make().state_dict()
    reference, history = train("alone", together=False)
    tuned_reference = in_phases("alone", together=False)
    results = {}
    for way in WAYS:
        found, own = train(way, together=True)
        heads = {n.split(".")[1] for n in found if n.startswith("heads.") and not torch.equal(start[n], found[n])}
        results[way] = {
            "error": distance(found, reference),
            "tuned": distance(in_phases(way, together=True), tuned_reference),
            "heads": sorted(heads),
            "losses": [[entry["loss"] for entry in each] for each in (own, history)],
        }
    if world.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))
    dist.barrier()
    leave(0)


if __name__ == "__main__":
    main()
