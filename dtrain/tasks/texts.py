"""What tasks with one vector of logits a text, or a pair of texts, have in common: batches, outputs, scoring by row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dtrain.data import EncodedSplit
from dtrain.data.batch import Batch, ByName
from dtrain.knowledge.collect import model_options, pick
from dtrain.knowledge.kinds import at_layer, find_kind, kind_names
from dtrain.models.inside import shape_of, taking
from dtrain.tasks.base import Task, check_coverage
from dtrain.training.workers import Workers


class TextTask(Task):
    """A row counts 1, and a model answers it by logits [B, C]. `targets` is what a kind of task adds to a batch."""

    card_tag = "text-classification"

    def units(self, rows: EncodedSplit) -> np.ndarray:
        return np.broadcast_to(np.int64(1), len(rows))  # takes no memory

    def targets(self, rows: EncodedSplit, index: np.ndarray) -> ByName:
        """What the losses compare the rows at `index` [B] with, by need."""
        raise NotImplementedError

    def collate(self, rows: EncodedSplit, index: np.ndarray, needs: set[str]) -> Batch:
        labels = rows.collate_labels(index)
        sides = {}
        if "parallel" in needs:
            pairs = np.zeros(len(index), dtype=bool) if rows.parallel is None else rows.parallel[index]
            sides = {"parallel": torch.from_numpy(pairs)}
        return Batch(
            rows=index,
            ids=rows.ids[index],
            inputs=rows.collate(index),
            targets=self.targets(rows, index) | sides,
            labelled=labels >= 0,
            units=torch.ones_like(labels),
        )

    def outputs(self, model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]:
        asked = [name for name in kind_names() if name in needs and name != "logits"]
        state = _state_with_features(model) if "features" in asked else None
        if state is None:
            output = model(**batch.inputs, **model_options(model, asked))
            found = {"logits": output.logits} | {name: pick(name, output) for name in asked}
        else:
            asked.remove("features")
            with taking(model, [state]) as taken:
                output = model(**batch.inputs, **model_options(model, asked))
            found = {"logits": output.logits} | {name: pick(name, output) for name in asked}
            found["features"] = taken()[state][:, 0].float()
        if "exits" in needs:
            found["exits"] = output.exits
        return found


def _state_with_features(model: nn.Module) -> str | None:
    """What of the inside of a transformers classifier its features are taken from; None for a model that gives them itself.

    It is asked by a hook, for transformers itself gives no states in a process that was sent the model, as ranks are where
    it is cut up: only where one is built does it note down which modules have some (5.17 and 5.23).
    """
    shape = shape_of(model)
    if shape is None or not find_kind("features").options(model):
        return None
    return at_layer("hidden_states", shape.layers)


def by_row(
    model: nn.Module,
    part: EncodedSplit,
    workers: Workers,
    values: Callable[[Tensor, np.ndarray], Tensor],
    width: int = 1,
) -> Tensor:
    """Numbers of each labelled row of a part, computed once by one of those who share the rows, and added over them.

    Every other worker adds an exact zero, so that the numbers are the same for any number of ranks.

    Args:
        values: of the logits, float32 [B, C], of the rows at positions [B]: float [B, width], on any device.

    Returns:
        float64 [N, width] on the CPU, 0 in rows without a label.

    Raises:
        DtrainError: a row was not scored exactly once.
    """
    labelled = np.flatnonzero(part.labels >= 0)
    found = torch.zeros(len(part), width + 1, dtype=torch.float64)  # the values, and how often the row was scored
    done, answers = [labelled[:0]], []
    for rows, (logits,) in workers.outputs(model, part, lambda output: (output.logits.float(),), labelled):
        done.append(rows)
        answers.append(values(logits, rows).double())
    mine = np.concatenate(done)
    if len(mine):
        times = torch.ones(len(mine), 1, dtype=torch.float64)
        found.index_add_(0, torch.from_numpy(mine), torch.cat([torch.cat(answers).cpu(), times], dim=1))
    found = workers.sum(found)
    check_coverage(part, found[:, width])
    return found[:, :width]
