"""An iterated dilated CNN with a CRF (Strubell et al. 2017, 1702.02098): a tagger without recurrence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dtrain.models.output import TaggerOutput
from dtrain.models.sequence import SequenceTagger


class IDCNN(SequenceTagger):
    """Embedding -> a convolution -> the same block of dilated convolutions, several times -> emissions -> CRF.

    Each convolution is followed by a relu and keeps the length; padding is zero before each, so it changes nothing.
    The loss is on the last pass of the block alone (the paper also averages it over all passes).

    Args:
        vocab_size: number of token ids.
        tags: names of the tags, BIOES.
        pad_token_id: its embedding is zero and stays so.
        embedding: size of a character's vector.
        filters: number of filters of every convolution.
        width: width of every filter in characters; odd.
        dilations: dilations of a block's convolutions, in order.
        blocks: how many times the block, whose weights are shared, is applied.
        dropout: on the embeddings and after each pass of the block.
        crf, constrain: see `SequenceTagger`.

    Raises:
        ValueError: for an even width.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        tags: list[str],
        pad_token_id: int,
        embedding: int,
        filters: int,
        width: int,
        dilations: list[int],
        blocks: int,
        dropout: float,
        crf: bool,
        constrain: bool,
    ) -> None:
        if width % 2 == 0:
            raise ValueError(f"width: must be odd, is {width}")
        super().__init__(tags=tags, features=filters, crf=crf, constrain=constrain)
        self.blocks = blocks
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=pad_token_id)
        self.convolution = nn.Conv1d(embedding, filters, width, padding="same")
        dilated = [nn.Conv1d(filters, filters, width, padding="same", dilation=dilation) for dilation in dilations]
        for convolution in dilated:
            # As in the paper: with torch's default weights, states would be near zero after so many convolutions.
            nn.init.dirac_(convolution.weight)
            nn.init.zeros_(convolution.get_parameter("bias"))
        self.block = nn.ModuleList(dilated)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        tags: Tensor | None = None,
        marginals: bool = False,
    ) -> TaggerOutput:
        """Emissions and, where asked for, likelihood and marginals of texts padded on the right.

        Args:
            input_ids: int64 [B, N], one token per character.
            attention_mask: [B, N], 1 for characters and 0 for padding; at least one character a row.
            token_type_ids: accepted so that all models are called alike; not used.
            tags: int64 [B, N], -1 at padding and everywhere in rows without tags.
            marginals: whether to compute the log marginals, too.
        """
        mask = attention_mask.bool()
        padding = ~mask[:, None]
        states = self.dropout(self.embedding(input_ids)).transpose(1, 2)
        states = torch.relu(self.convolution(states.masked_fill(padding, 0.0)))
        features = states
        for _ in range(self.blocks):
            for convolution in self.block:
                states = torch.relu(convolution(states.masked_fill(padding, 0.0)))
            features, states = states, self.dropout(states)
        found = self.answer(states.transpose(1, 2), mask, tags, marginals)
        return found._replace(states=features.transpose(1, 2))
