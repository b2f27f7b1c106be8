"""Training rows of a noisy student (Xie et al. 2020, 1911.04252): confident ones, balanced over classes, with noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dtrain.data import EncodedSplit
from dtrain.data.batch import Batch
from dtrain.errors import InputError
from dtrain.recipe.noisy import Noisy

if TYPE_CHECKING:
    from dtrain.knowledge.reader import StoreReader


def blank_tokens(batch: Batch, *, share: float, part: EncodedSplit) -> Batch:
    """The batch with each token of text blanked with probability `share`, drawn from torch's random generator.

    The special tokens around texts are kept: a pair needs its separator, and a transformer's prediction is computed
    from [CLS]. A blanked token gets the id of the padding, but stays in the attention mask; in the package's own
    students, the padding's vector is 0.
    """
    ids = batch.inputs["input_ids"]
    frame = torch.tensor(part.frame, dtype=ids.dtype, device=ids.device)
    blanked = (torch.rand(ids.shape, device=ids.device) < share) & ~torch.isin(ids, frame)
    return replace(batch, inputs={**batch.inputs, "input_ids": ids.masked_fill(blanked, part.pad_id)})


def noisy_rows(part: EncodedSplit, stores: Mapping[str, StoreReader], spec: Noisy) -> EncodedSplit:
    """All labelled rows, and the unlabelled ones that `confident` selects by the mean of the teachers' distributions.

    Args:
        stores: the knowledge store of each teacher.

    Raises:
        InputError: no unlabelled row was selected.
    """
    unlabelled = np.flatnonzero(part.labels < 0)
    distributions = [store.read("logits", part.ids[unlabelled]).softmax(-1) for store in stores.values()]
    chosen = unlabelled[confident(torch.stack(distributions).mean(0), spec.confidence, spec.balance)]
    if not len(chosen):
        raise InputError(f"noisy.confidence: no transfer row reaches {spec.confidence:g}")
    return part.take(np.concatenate([np.flatnonzero(part.labels >= 0), chosen]))


def confident(probabilities: torch.Tensor, floor: float, balance: bool) -> np.ndarray:
    """Positions of the rows whose largest probability is at least `floor`, int64 [M], ascending.

    With `balance`, every class that has such rows gets the same number of them, the mean over these classes (rounded
    up). A larger class keeps its rows with the highest probabilities; the rows of a smaller one are repeated, from the
    highest probability on, until there are enough.

    Args:
        probabilities: float [N, C].
    """
    largest, classes = (tensor.numpy() for tensor in probabilities.max(-1))
    kept = np.flatnonzero(largest >= floor)
    if not balance or not len(kept):
        return kept
    surest = kept[np.argsort(-largest[kept], kind="stable")]
    by_class = [rows for c in range(probabilities.shape[1]) if len(rows := surest[classes[surest] == c])]
    return np.sort(np.concatenate([np.resize(rows, -(-len(kept) // len(by_class))) for rows in by_class]))
