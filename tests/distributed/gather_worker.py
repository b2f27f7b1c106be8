"""One rank of a loss over all pairs of rows: `gather_worker.py OUT`; rank 0 writes the gradients of both layers and the
loss to OUT.

Five rows are divided among the ranks, which have different numbers of them; with four ranks or more one has none, and
takes part with a row of another rank.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from dtrain.losses.over_rows import AllRows, similarity_difference
from dtrain.runtime.gather import gather_rows

ROWS = 5


def gradients(rank: int, ranks: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    rows, taught = torch.randn(ROWS, 6).double(), torch.randn(ROWS, 7).double()
    mine = torch.arange(rank, ROWS, ranks)
    counted = torch.ones(max(1, len(mine)), dtype=torch.bool)
    if not len(mine):
        mine, counted = torch.tensor([0]), torch.tensor([False])
    everyone = AllRows(counted, lambda own: gather_rows(own, -(-ROWS // ranks)))
    values = similarity_difference(model(rows[mine]), taught[mine], everyone)
    loss = values.sum() * float(counted.any()) / ROWS
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found["loss"] = loss.detach().clone()
    if ranks > 1:
        for tensor in found.values():
            dist.all_reduce(tensor)
    return found


def main() -> None:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=ranks)
    found = gradients(rank, ranks)
    if rank == 0:
        save_file(found, out / "gradients.safetensors")
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # an ordinary exit is sometimes aborted by gloo's threads


if __name__ == "__main__":
    main()
