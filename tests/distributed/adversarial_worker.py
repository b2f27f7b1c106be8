"""One rank of an adversarial step: `adversarial_worker.py WAY METHOD... OUT`; rank 0 writes the gradients to
OUT/<way>-<method>.pt.

A step has four rows in micro-batches of one row, divided among the ranks; the last micro-batch synchronises the
gradients.
"""

from __future__ import annotations

import contextlib
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dtrain.models import build
from dtrain.recipe.adversarial import AdversarialSpec
from dtrain.recipe.architectures.taggers import TaggerSpec
from dtrain.training.adversarial import Adversary

IDS = torch.tensor([[2, 7, 8, 9, 4, 6, 3], [2, 5, 11, 3, 0, 0, 0], [2, 9, 9, 12, 5, 3, 0], [2, 6, 3, 0, 0, 0, 0]])
TAGS = ["O", "B-X", "I-X", "E-X", "S-X"]


def make() -> nn.Module:
    torch.manual_seed(0)
    encoder = {"type": "nezha", "hidden": 16, "layers": 2, "heads": 2, "dropout": 0.0}
    section = {"type": "tagger", "encoder": encoder, "fusion": "dynamic", "lstm": 6, "dropout": 0.0}
    return build(TaggerSpec.model_validate(section), vocabulary=20, labels=TAGS, pad_id=0).train()


def step(way: str, method: str, rank: int, world: int) -> tuple[dict[str, Tensor], int]:
    """The complete gradients, and the number of gradient reductions over ranks (counted under DDP)."""
    bare = make()
    model: Any = bare
    reductions = []
    if way == "ddp":
        model = DistributedDataParallel(bare)

        def count(state, bucket):  # no annotations: DDP refuses those that are strings
            reductions.append(bucket.is_last())
            return allreduce_hook(state, bucket)

        model.register_comm_hook(None, count)
    elif way == "fsdp2":
        mesh = init_device_mesh("cpu", (world,))
        for layer in bare.get_submodule("encoder.encoder.layer").children():
            fully_shard(layer, mesh=mesh)
        fully_shard(bare, mesh=mesh)

    mine = list(range(rank, len(IDS), world))

    def synchronise_when(last: bool) -> AbstractContextManager[Any]:
        if way == "fsdp2":
            model.set_requires_gradient_sync(last)
        return model.no_sync() if way == "ddp" and not last else contextlib.nullcontext()

    adversary = Adversary(AdversarialSpec(type=method, norm="relative", epsilon=0.5, step_size=0.3), bare)
    for number, row in enumerate(mine):
        last = number == len(mine) - 1

        def forward(row: int = row) -> Tensor:
            ids = IDS[row : row + 1, : int((IDS[row] != 0).sum())]
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), tags=ids[:, 2:] % len(TAGS)).nll.sum()

        def synchronise(flag: bool, last: bool = last) -> AbstractContextManager[Any]:
            return synchronise_when(last and flag)

        adversary.micro_step(forward, lambda loss: (loss * world / len(IDS)).backward(), synchronise)
    adversary.close()
    return {name: whole(p.grad) for name, p in bare.named_parameters() if p.grad is not None}, sum(reductions)


def whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()


def main() -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    *cases, out = sys.argv[1:]
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=world)
    for case in cases:
        way, method = case.split("-")
        gradients, reductions = step(way, method, rank, world)
        if rank == 0:
            gradients["reductions"] = torch.tensor(reductions)
            save_file(gradients, Path(out, f"{case}.safetensors"))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # an ordinary exit is sometimes aborted by gloo's threads


if __name__ == "__main__":
    main()
