"""A bag of tokens and hashed n-grams (Joulin et al. 2016, 1607.01759): the fastest student there is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.models.output import ClassifierOutput

MULTIPLIER = 116049371  # of fastText's own rolling hash


class FastText(nn.Module):
    """The mean of the vectors of a text's tokens and of its n-grams of tokens, n in 2 .. `ngrams` -> dropout -> linear.

    n-grams have no vocabulary: each is hashed to one of `buckets` vectors, the same on every machine.

    Args:
        vocab_size: number of token ids.
        classes: C.
        pad_token_id: its embedding is zero and stays so.
        embedding: size of a vector.
        ngrams: the longest n; 1 for tokens alone.
        buckets: number of vectors for n-grams.
        dropout: on the features only.
    """

    config: dict[str, Any]

    def __init__(
        self,
        *,
        vocab_size: int,
        classes: int,
        pad_token_id: int,
        embedding: int,
        ngrams: int,
        buckets: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.ngrams, self.buckets = ngrams, buckets
        self.pad_token_id = pad_token_id
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=pad_token_id)
        self.ngram_embedding = nn.Embedding(buckets, embedding) if ngrams > 1 else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(embedding, classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> ClassifierOutput:
        """Classify texts padded on the right; a text without tokens has the features 0.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 1 for tokens and 0 for padding.
            token_type_ids: accepted so that all models are called alike; not used.
        """
        lengths = attention_mask.sum(1)
        ids = input_ids.masked_fill(attention_mask == 0, self.pad_token_id)
        if self.ngrams > 1 and ids.shape[1] < 2:
            # The table of n-grams takes part in every pass: engines wait for each parameter's gradient.
            ids = functional.pad(ids, (0, 2 - ids.shape[1]), value=self.pad_token_id)
        total, count = self.embedding(ids).sum(1), lengths.clone()
        hashed, buckets, inside = ids, [], []
        for n in range(2, min(self.ngrams, ids.shape[1]) + 1):
            # int64 wraps around on overflow, which does a rolling hash no harm.
            hashed = hashed[:, :-1] * MULTIPLIER + ids[:, n - 1 :]
            buckets.append(hashed.remainder(self.buckets))
            inside.append(torch.arange(hashed.shape[1], device=ids.device) < (lengths - n + 1)[:, None])
            count = count + (lengths - n + 1).clamp(min=0)
        if self.ngram_embedding is not None:
            # One look-up for all n together: each look-up makes a gradient of the table's size.
            vectors = functional.embedding(torch.cat(buckets, dim=1), self.ngram_embedding.weight)
            vectors = torch.where(torch.cat(inside, dim=1)[..., None], vectors, 0.0)
            end = 0
            for of_n in buckets:
                begin, end = end, end + of_n.shape[1]
                total = total + vectors[:, begin:end].sum(1)
        features = total / count.clamp(min=1)[:, None]
        return ClassifierOutput(self.classifier(self.dropout(features)), features)
