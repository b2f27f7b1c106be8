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
    """Copy a file's vectors of known tokens into an embedding; other tokens keep theirs. Returns how many were found.

    The vector of padding stays zero, even if the file has one: answers must not depend on how far a text is padded.

    Args:
        embedding: float [V, E].
        path: of a word2vec file, text or binary; the first vector of a token that occurs twice counts.
        vocabulary: the id of each token.

    Raises:
        InputError: naming the file's line (in binary files the byte): another width than E, an invalid number, a file
            that ends too early, or one that holds no token of the vocabulary.
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
