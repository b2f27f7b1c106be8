"""Tasks whose models give one vector of logits for each row (a text or a pair): batches, outputs, scoring by row."""

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
    """Base class of tasks with logits [B, C]; each row has weight 1 in the loss. Subclasses define `targets`."""

    card_tag = "text-classification"

    def units(self, rows: EncodedSplit) -> np.ndarray:
        return np.broadcast_to(np.int64(1), len(rows))  # takes no memory

    def targets(self, rows: EncodedSplit, index: np.ndarray) -> ByName:
        """The gold values of the rows at `index` [B], by the names under which losses read them."""
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
    """The hidden state that gives the features of a transformers classifier; None for a model that returns features.

    The state is read by a forward hook. transformers (5.17 and 5.23) returns no hidden states in a process that
    received the model from another one, as ranks do where the model is sharded: it registers the modules that have
    hidden states only in the process that builds the model.
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
    """Compute numbers for each labelled row of a part: each row on one rank only, then summed over all ranks.

    The other ranks add an exact zero, so that the numbers are the same for any number of ranks.

    Args:
        values: a function of logits, float32 [B, C], and the positions of their rows [B]; it returns float [B, width]
            on any device.
        width: how many numbers there are for each row.

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
