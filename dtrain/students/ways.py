"""The ways to make one step of several students: stacked, on CUDA streams, or learning from each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dtrain.losses.outputs import full_precision
from dtrain.models import ClassifierOutput
from dtrain.models.bilstm import BiLSTM
from dtrain.models.textcnn import TextCNN
from dtrain.students.stack import Stack
from dtrain.students.stacked_bilstm import forward_bilstm
from dtrain.students.stacked_textcnn import forward_textcnn
from dtrain.training.loop import attempt
from dtrain.training.run import Diverged, Losses, Run

FORWARDS: dict[type, Callable[..., tuple[Tensor, Tensor]]] = {TextCNN: forward_textcnn, BiLSTM: forward_bilstm}


class Fused:
    """Steps members of one structure as one stacked model. Who leaves is taken out of the stack."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._stack: Stack | None = None

    def __call__(self, runs: list[Run]) -> dict[Run, Exception]:
        if self._stack is None or self._runs != runs:
            self._runs = list(runs)
            self._stack = Stack([run.job.engine for run in runs], runs[0].job.spec.optimizer.type)
        stack, first = self._stack, runs[0]
        stack.attach()
        failed = attempt(runs, Run.begin_step)
        random = [torch.Generator(run.job.engine.world.device).manual_seed(run.random_seed()) for run in runs]
        forward = FORWARDS[type(stack.models[0])]
        stack.zero_grad()
        for rows, scale in first.shares():
            batch = first.job.rows.collate(rows)  # type: ignore[attr-defined]
            batch = {name: tensor.to(first.job.engine.world.device) for name, tensor in batch.items()}
            with first.job.engine.autocast():
                logits, features = forward(
                    stack.models, stack.weights, batch["input_ids"], batch["attention_mask"], random
                )
                total = torch.zeros((), device=logits.device)
                for run, *answer in zip(runs, logits.unbind(), features.unbind(), strict=True):
                    if run in failed:
                        continue
                    given = _Given(ClassifierOutput(*answer))
                    try:
                        losses = run.job.loss(given, rows, run.progress)
                        run.measured(losses, rows, scale)
                    except torch.OutOfMemoryError:
                        raise
                    except Exception as error:
                        failed[run] = error
                        continue
                    total = total + losses[0] * scale
            if total.requires_grad:
                stack.backward(total)
        norms = stack.step([run.job.spec.clip for run in runs])
        for run, norm in zip(runs, norms, strict=True):
            run.norm, run.applied = norm, True
        return failed


class _Given(torch.nn.Module):
    """Stands for a model whose answer is known."""

    def __init__(self, output: ClassifierOutput) -> None:
        super().__init__()
        self.output = output

    def forward(self, **batch: Any) -> ClassifierOutput:
        return self.output


class _Kept(torch.nn.Module):
    """A model whose last answer is kept."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.output: Any = None

    def forward(self, **batch: Any) -> Any:
        self.output = self.model(**batch)
        return self.output


def peers(runs: list[Run]) -> dict[Run, Exception]:
    """Step students that learn from each other's answers: deep mutual learning (Zhang et al. 2018, 1706.00384).

    The loss of peer k of K is its own plus 1/(K-1) sum_l KL(p_l || p_k) (equations 3 to 5), with all p of the same
    moment and p_l taken as given. A peer whose answers are not finite leaves before others learn from them.
    """
    failed = attempt(runs, Run.begin_step)
    for number, (rows, scale) in enumerate(runs[0].shares()):
        losses, logits, fell = _answers([run for run in runs if run not in failed], rows, number)
        failed |= fell
        for run, (total, sums, counts) in losses.items():
            others = [answer.detach() for other, answer in logits.items() if other is not run]
            if others:
                apart = mean_divergence(logits[run], others).sum()
                units = torch.tensor(len(rows), device=apart.device)
                sums, counts = {**sums, "peers": apart.detach()}, {**counts, "peers": units}
                total = total + apart
            run.measured((total, sums, counts), rows, scale)
            run.job.engine.backward(total * scale)

    def apply(run: Run) -> None:
        run.norm, run.applied = run.job.engine.step(run.job.spec.clip)

    return failed | attempt([run for run in runs if run not in failed], apply)


def _answers(
    runs: list[Run], rows: np.ndarray, number: int
) -> tuple[dict[Run, Losses], dict[Run, Tensor], dict[Run, Exception]]:
    """Each one's own losses and logits of the micro-batch `number`, both with gradient; and whose answers are no use."""
    losses: dict[Run, Losses] = {}
    logits: dict[Run, Tensor] = {}

    def answer(run: Run) -> None:
        kept = _Kept(run.job.engine.model)
        torch.manual_seed(run.random_seed() + number)
        with run.job.engine.autocast():
            own = run.job.loss(kept, rows, run.progress)
        given = full_precision(kept.output.logits)
        if not bool(given.isfinite().all() & own[0].isfinite()):
            raise Diverged(f"{run.job.title}: its answers are not finite at step {run.position.step}")
        losses[run], logits[run] = own, given

    return losses, logits, attempt(runs, answer)


def mean_divergence(logits: Tensor, others: Sequence[Tensor]) -> Tensor:
    """1/(K-1) sum_l KL(softmax(z_l) || softmax(z)) of each row, [B], of logits [B, C]."""
    own = functional.log_softmax(logits, dim=-1)
    apart = [
        functional.kl_div(own, functional.log_softmax(other, dim=-1), reduction="none", log_target=True).sum(-1)
        for other in others
    ]
    return torch.stack(apart).mean(0)


class Streams:
    """Steps members one after another, each in a CUDA stream of its own: small kernels of several run at once.

    Args:
        stream: the region in which the n-th member's work is issued; default: on a GPU a new stream each.
    """

    def __init__(
        self, device: torch.device, stream: Callable[[int], AbstractContextManager[Any]] | None = None
    ) -> None:
        self._device = device
        self._streams: list[Any] = []
        self._region = stream or self._own

    def __call__(self, runs: list[Run]) -> dict[Run, Exception]:
        failed: dict[Run, Exception] = {}
        for number, run in enumerate(runs):
            with self._region(number):
                failed |= attempt([run], Run.make_step)
        if self._device.type == "cuda":
            for stream in self._streams:
                torch.cuda.current_stream(self._device).wait_stream(stream)
        return failed

    @contextlib.contextmanager
    def _own(self, number: int) -> Any:
        if self._device.type != "cuda":
            yield
            return
        while len(self._streams) <= number:
            self._streams.append(torch.cuda.Stream(self._device))
        stream = self._streams[number]
        stream.wait_stream(torch.cuda.current_stream(self._device))  # weights as the last evaluation left them
        with torch.cuda.stream(stream):
            yield
