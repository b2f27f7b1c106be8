"""The rows of a noisy student (Xie et al. 2020, 1911.04252): those its teachers are sure of, balanced, with noise."""

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
    """The batch with each token of text blanked with the chance `share`, by torch's random generator.

    What stands around texts stays: a pair without its separator would be one text, and a transformer reads its answer
    off [CLS]. A blank is the padding's id where the mask says token: in the package's own students its vector is 0.
    """
    ids = batch.inputs["input_ids"]
    frame = torch.tensor(part.frame, dtype=ids.dtype, device=ids.device)
    blanked = (torch.rand(ids.shape, device=ids.device) < share) & ~torch.isin(ids, frame)
    return replace(batch, inputs={**batch.inputs, "input_ids": ids.masked_fill(blanked, part.pad_id)})


def noisy_rows(part: EncodedSplit, stores: Mapping[str, StoreReader], spec: Noisy) -> EncodedSplit:
    """All labelled rows, and the unlabelled ones that `confident` chooses by the mean of the teachers' distributions.

    Raises:
        InputError: no unlabelled row is left.
    """
    unlabelled = np.flatnonzero(part.labels < 0)
    distributions = [store.read("logits", part.ids[unlabelled]).softmax(-1) for store in stores.values()]
    chosen = unlabelled[confident(torch.stack(distributions).mean(0), spec.confidence, spec.balance)]
    if not len(chosen):
        raise InputError(f"noisy.confidence: no transfer row reaches {spec.confidence:g}")
    return part.take(np.concatenate([np.flatnonzero(part.labels >= 0), chosen]))


def confident(probabilities: torch.Tensor, floor: float, balance: bool) -> np.ndarray:
    """Rows [M] whose largest probability is at least `floor`, ascending.

    Balanced, every class that has rows is given the same number of them, the mean over these classes (rounded up): of
    a larger class the surest rows, of a smaller one all, the surest coming again until there are enough.

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
