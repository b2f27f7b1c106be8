"""One rank that fills stores with a teacher that is sharded over all ranks, or whole on one:
`sharded_knowledge_worker.py FOLDER`.

Writes a store to FOLDER/<case>, and what happened on this rank to FOLDER/facts-<rank>.json.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from dtrain.errors import DtrainError, Stopped
from dtrain.models import build, in_own_memory
from dtrain.recipe.architectures.taggers import TaggerSpec
from dtrain.recipe.architectures.transformers import BertSpec
from dtrain.runtime.distributed import World, connect, leave
from dtrain.stages.filling import fill
from dtrain.training.inference import cast_products, pack_products
from dtrain.training.lockstep import EVERY, LockstepModel, load_lockstep

sys.path.insert(0, str(Path(__file__).parents[1] / "knowledge"))
from conftest import FEATURES, VOCABULARY, Job, StoreWriter

# With five classes and a layer of 65, slices are uneven and padded.
SHAPE = {"type": "bert", "layers": 3, "hidden": FEATURES, "heads": 2, "intermediate": 65, "dropout": 0.0}
CASES: dict[str, dict[str, Any]] = {
    "logits": {"outputs": ("logits", "features"), "dtype": "float32", "shard_rows": 60, "batch_tokens": 50},
    "bf16": {"outputs": ("logits",), "dtype": "float32", "precision": "bf16", "shard_rows": 60},
    "tags": {"outputs": ("emissions", "marginals"), "dtype": "float32", "shard_rows": 70},
    "two shards": {"outputs": ("logits",), "dtype": "float32", "shard_rows": 150},
}


def bert() -> nn.Module:
    torch.manual_seed(0)
    spec = BertSpec.model_validate(SHAPE)
    return in_own_memory(build(spec, vocabulary=VOCABULARY, labels=list("abcde"), pad_id=0)).eval()


def tagger() -> nn.Module:
    torch.manual_seed(0)
    section = {"type": "tagger", "encoder": {**SHAPE, "type": "nezha"}, "fusion": "dynamic", "lstm": 6, "dropout": 0.0}
    spec = TaggerSpec.model_validate(section)
    return in_own_memory(build(spec, vocabulary=VOCABULARY, labels=["O", "B-X", "I-X", "E-X", "S-X"], pad_id=0)).eval()


class Calls:
    """Counts the calls of a model, and may run a function at one of them."""

    def __init__(self, model: nn.Module, at: int = -1, act: Callable[[], None] = lambda: None) -> None:
        self.made, self.at, self.act = 0, at, act
        inner = model.model if isinstance(model, LockstepModel) else model
        inner.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.made += 1
        if self.made == self.at:
            self.act()


class Request:
    """A request to stop that reached this rank."""

    asked = False

    def anywhere(self) -> bool:
        return self.asked


def attempt(store: StoreWriter, teacher: nn.Module, job: Job, world: World) -> str:
    try:
        fill(store, teacher, job.part, world, title="made-up")
    except Stopped:
        return "stopped"
    except DtrainError as error:
        return f"failed {error}"
    return "done"


def one_rank(folder: Path) -> None:
    world = connect()
    facts: dict[str, Any] = {}

    def teacher_of(job: Job) -> nn.Module:
        make = tagger if job.tagging else bert
        if world.size == 1:
            return pack_products(cast_products(make(), job.precision, world.device), world.device)
        return load_lockstep(make, job.precision, world)

    for name, settings in CASES.items():
        job = Job(**settings)
        teacher = teacher_of(job)
        store = StoreWriter(folder / name, job.layout, job.part.ids)
        calls = Calls(teacher)
        facts[name] = {"outcome": attempt(store, teacher, job, world), "passes": calls.made}
        if world.size > 1:
            kinds = {type(p) for p in teacher.parameters()}
            facts[name]["cut"] = kinds == {DTensor}
            facts[name]["slice"] = sum(p.to_local().numel() for p in teacher.parameters())  # type: ignore[attr-defined]
    facts["whole"] = sum(p.numel() for p in bert().parameters())
    if world.size > 1:
        facts |= troubles(folder, world, teacher_of)
    (folder / f"facts-{world.rank}.json").write_text(json.dumps(facts))
    leave(0)


def troubles(folder: Path, world: World, teacher_of: Callable[[Job], nn.Module]) -> dict[str, Any]:
    """A restart, a request to stop, and NaN, each on one rank only."""
    facts: dict[str, Any] = {}
    job = Job(**CASES["logits"])

    def store_in(name: str) -> StoreWriter:
        return StoreWriter(folder / name, job.layout, job.part.ids)

    def copy() -> None:
        shutil.copytree(folder / "logits", folder / "restarted")
        for name in ("manifest.json", "shard-00001.arrow", "shard-00004.arrow"):
            (folder / "restarted" / name).unlink()

    world.run_on_main(copy)
    teacher = teacher_of(job)
    calls = Calls(teacher)
    facts["restarted"] = {"outcome": attempt(store_in("restarted"), teacher, job, world), "passes": calls.made}

    world.stop = Request()  # type: ignore[assignment]
    teacher = teacher_of(job)
    last = world.rank == world.size - 1
    calls = Calls(teacher, at=EVERY + 2, act=lambda: setattr(world.stop, "asked", last))
    facts["stopped"] = {"outcome": attempt(store_in("stopped"), teacher, job, world), "passes": calls.made}
    world.stop = None
    facts["continued"] = {"outcome": attempt(store_in("stopped"), teacher_of(job), job, world)}

    poison = VOCABULARY - 1
    job.part.tokens[job.part.tokens == poison] = 1
    job.part.tokens[job.part.offsets[63]] = poison  # in the second shard, which is the first one of the second rank

    def broken() -> nn.Module:
        model = bert()
        with torch.no_grad():
            model.get_parameter("bert.embeddings.word_embeddings.weight")[poison] = float("nan")
        return model

    teacher = load_lockstep(broken, "fp32", world)
    calls = Calls(teacher)
    facts["nan"] = {"outcome": attempt(store_in("nan"), teacher, job, world), "passes": calls.made}
    return facts


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]))
