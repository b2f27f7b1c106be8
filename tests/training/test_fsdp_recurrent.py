"""FSDP2 with a recurrent model whose weights are moved into one block of memory when it is called, as torch does on
GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from dtrain.engines.fsdp import spread
from dtrain.models import recurrent


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def flatten(self: nn.RNNBase) -> None:
    """What `nn.RNNBase.flatten_parameters` does on a GPU: the weights become views of one new piece of memory."""
    weights = [weight for weight in self._flat_weights if isinstance(weight, Tensor)]
    if any(weight.is_meta or type(weight.data) is not Tensor for weight in weights):
        return
    with torch.no_grad():
        whole, start = torch.cat([weight.reshape(-1) for weight in weights]), 0
        for weight in weights:
            weight.data = whole[start : start + weight.numel()].view_as(weight)
            start += weight.numel()


class Model(nn.Module):
    def __init__(self, plain: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(4, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 1)
        self.plain = plain

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        read = self.lstm(inputs)[0] if self.plain else recurrent.read_both_ways(self.lstm, inputs, lengths)
        return self.head(read).sum((1, 2))


def losses(model: Model, device: str = "cpu") -> list[float]:
    """The losses of five steps of gradient descent."""
    inputs = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(1)).to(device)
    wanted, lengths = torch.linspace(-1, 1, 6, device=device), torch.full((6,), 7, device=device)
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.002), []
    for _ in range(5):
        loss = (model(inputs, lengths) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("plain", [False, True], ids=["read both ways", "torch's own call"])
def test_an_lstm_is_trained_with_the_weights_of_the_last_step(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    monkeypatch.setattr(recurrent, "read_padded", recurrent._packed)  # as on a GPU
    expected = losses(Model(plain))
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", flatten)
    cut = Model(plain)
    spread(cut, init_device_mesh("cpu", (1,)))
    assert losses(cut) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < 0.9 * expected[0]


@pytest.mark.gpu
def test_an_lstm_on_a_gpu() -> None:
    expected = losses(Model(False).cuda(), "cuda")
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        cut = Model(False).cuda()
        spread(cut, init_device_mesh("cuda", (1,)))
        assert losses(cut, "cuda") == pytest.approx(expected, rel=1e-4)
    finally:
        dist.destroy_process_group()
