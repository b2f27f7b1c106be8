"""Pre-trained vectors of characters or words for a student's embedding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dtrain.data.vectors import read_vectors
from dtrain.errors import InputError


def fill_embedding(embedding: nn.Embedding, path: Path, vocabulary: Mapping[str, int]) -> int:
    """Put the file's vectors of known tokens in place; the others keep theirs. Returns how many were found.

    Padding keeps its own, zero, also where the file has one: answers must not depend on how far a text is padded.

    Args:
        embedding: float [V, E].
        path: of a word2vec file, text or binary; of a token that comes twice the first counts.
        vocabulary: ids of tokens.

    Raises:
        InputError: naming the file's line (the byte, of binary files): another width than E, a number that is none,
            a file that ends too early, or one that holds no token of the vocabulary.
    """
    wanted = {token: id for token, id in vocabulary.items() if id != embedding.padding_idx}
    found: dict[int, np.ndarray] = {}
    for token, values in read_vectors(path, embedding.embedding_dim, wanted):
        found.setdefault(wanted[token], values)
    if not found:
        raise InputError(f"model.vectors: {path}: holds none of the {len(vocabulary):,} tokens of the vocabulary")
    with torch.no_grad():
        rows = torch.tensor(list(found), device=embedding.weight.device)
        embedding.weight[rows] = torch.from_numpy(np.stack(list(found.values()))).to(embedding.weight)
    return len(found)
