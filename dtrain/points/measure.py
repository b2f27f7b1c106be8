"""Measuring the entropies of all tokens of the chosen texts under one model; the texts are shared among ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dtrain.data import inference_batches
from dtrain.errors import DtrainError
from dtrain.knowledge.collect import model_options
from dtrain.knowledge.kinds import find_kind
from dtrain.points.noise import NoiseSearch, NoisyModel, entropies
from dtrain.points.texts import Texts
from dtrain.runfolder import fingerprint
from dtrain.training.inference import in_threads
from dtrain.training.workers import Workers

FEATURES = "features"
ROW_TOKENS = 2048  # padded tokens in one call of the model, over all samples of noise


def measure(model: nn.Module, texts: Texts, search: NoiseSearch, seed: int, workers: Workers) -> list[np.ndarray]:
    """The entropy of each token of each text in nats, float32 [tokens] for each text.

    The result does not depend on the number of ranks or threads: batches depend on the texts alone, a CPU computes each
    batch on one thread, and the noise of a text depends on `seed` and its row id. The model is left in eval mode with
    frozen parameters.

    Raises:
        DtrainError: the vector before the classifier is the same for all texts, or the model has no such vector.
    """
    noisy = NoisyModel(model.to(workers.device), _feature, model_options(model, [FEATURES]))
    batches = inference_batches(texts.part.lengths[texts.rows], max(1, ROW_TOKENS // search.samples))
    mine = workers.mine(list(batches))
    threads = workers.threads if workers.device.type == "cpu" else 1

    def inputs(batch: np.ndarray) -> dict[str, Tensor]:
        collated = texts.part.collate(texts.rows[batch])
        return {name: tensor.to(workers.device) for name, tensor in collated.items()}

    def feature(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return noisy.features(inputs(batch)).double().cpu().numpy()

    def found(batch: np.ndarray) -> list[tuple[int, np.ndarray]]:
        seeds = [int(fingerprint(seed, int(texts.part.ids[texts.rows[row]]))[:15], 16) for row in batch]
        values = entropies(noisy, inputs(batch), variance, search, seeds).cpu().numpy()
        return [(int(row), own[: len(texts.foreground[row])]) for row, own in zip(batch, values, strict=True)]

    try:
        own = dict(zip((tuple(batch) for batch in mine), in_threads(feature, mine, threads), strict=True))
        features = _in_order(
            workers.gather([(row, vector) for rows, v in own.items() for row, vector in zip(rows, v, strict=True)])
        )
        variance = float(np.square(features - features.mean(0)).sum(1).mean())
        if not variance > 0:
            raise DtrainError("the vector before the classifier is the same for all texts")
        mine_found = [pair for pairs in in_threads(found, mine, threads) for pair in pairs]
        whole = dict(pair for pairs in workers.gather(mine_found) for pair in pairs)
    finally:
        noisy.close()
    return [whole[row] for row in range(len(texts.rows))]


def _feature(output: Any) -> Tensor:
    vector: Tensor | None = find_kind(FEATURES).pick(output)
    if vector is None:
        raise DtrainError("the model has no vector before its classifier")
    return vector


def _in_order(gathered: list[list[tuple[int, np.ndarray]]]) -> np.ndarray:
    found = dict(pair for pairs in gathered for pair in pairs)
    return np.stack([found[row] for row in sorted(found)])
