"""The objective of a multi-task model: the losses of each task, of which a batch uses those of its own task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dtrain.losses.objective import Losses, LossSum, ModelOutputs, Objective

if TYPE_CHECKING:
    from dtrain.data.batch import Batch


class TaskLosses(nn.Module):
    """The losses of each task, by its name."""

    def __init__(self, losses: Mapping[str, LossSum]) -> None:
        super().__init__()
        self.by_task = nn.ModuleDict(losses)

    def __getitem__(self, task: str) -> LossSum:
        found = self.by_task[task]
        assert isinstance(found, LossSum)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_task)


class TasksObjective(Objective):
    """A multi-task model and the losses of each task. A batch belongs to one task, and gets no other task's terms.

    Args:
        asks: for each task, a function that calls the model of that task alone for a batch and returns its outputs by
            name.
    """

    def __init__(
        self, model: nn.Module, losses: TaskLosses, asks: Mapping[str, ModelOutputs], *, together: bool = False
    ) -> None:
        def ask(model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]:
            return self.asks[batch.task](model.of_task(batch.task), batch, needs)  # type: ignore[operator]

        super().__init__(model, losses, ask, together=together)
        self.asks = dict(asks)

    def losses_of(self, batch: Batch) -> LossSum:
        """The losses of the batch's task."""
        assert isinstance(self.losses, TaskLosses)
        return self.losses[batch.task]

    def parts(self, outputs: Mapping[str, Tensor], batch: Batch, progress: float = 0.0) -> Losses:
        """As the base class; terms are named `TASK.TERM`."""
        total, sums, counts = super().parts(outputs, batch, progress)
        assert isinstance(self.losses, TaskLosses)
        idle = [p for task in self.losses if task != batch.task for p in self.losses[task].parameters()]
        if idle:  # every parameter takes part in every backward pass: DDP waits for the gradient of each
            total = total + 0.0 * sum(parameter.sum() for parameter in idle)
        task = batch.task
        return total, {f"{task}.{name}": s for name, s in sums.items()}, {f"{task}.{n}": c for n, c in counts.items()}
