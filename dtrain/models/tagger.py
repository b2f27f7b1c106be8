"""The tagger: encoder or character embedding -> fusion of layers -> BiLSTM -> emissions -> CRF or softmax.

With NEZHA, dynamic fusion, BiLSTM and CRF it is the published NEZHA-BiLSTM-CRF with dynamic fusion; each part can be
left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.models.fusion import CONCATENATED, Concatenation, DynamicFusion
from dtrain.models.output import TaggerOutput
from dtrain.models.recurrent import read_both_ways
from dtrain.models.sequence import SequenceTagger

FUSIONS = ("last", "concat", "dynamic")
SPECIALS = 2  # [CLS] first, [SEP] last


class Tagger(SequenceTagger):
    """A tag for each character of a text.

    Args:
        vocab_size: number of token ids.
        tags: names of the tags, BIOES.
        pad_token_id: without an encoder, its embedding is zero and stays so.
        encoder: a transformers model without head or pooler, or None for an embedding of characters.
        embedding: size of a character's vector; read without an encoder only.
        fusion: which layers of the encoder: 'last', 'concat' (of the last four), 'dynamic' (a learned mixture).
        lstm: size of the state of one direction, float32 also under autocast; None for no LSTM.
        dropout: on the character embeddings and on the states that reach the emissions.
        crf, constrain: see `SequenceTagger`.
        privileged: for a teacher that reads annotations beside the text: their `types`, and the `size` of an
            annotation's vector, which is concatenated to each character's state before the LSTM (without one, before
            the emissions). None: it reads no annotations.

    Raises:
        ValueError: naming the argument, for a fusion that is unknown or has too few layers.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        tags: list[str],
        pad_token_id: int,
        encoder: nn.Module | None,
        embedding: int | None,
        fusion: str,
        lstm: int | None,
        dropout: float,
        crf: bool,
        constrain: bool,
        privileged: Mapping[str, Any] | None = None,
    ) -> None:
        if encoder is None:
            if embedding is None or fusion != "last":
                raise ValueError("without an encoder, a tagger needs an embedding and has one layer (fusion: last)")
            width = embedding
            layers = 1
        else:
            layers, width = _layers_and_width(encoder.config, fusion)
        width += privileged["size"] if privileged else 0
        super().__init__(tags=tags, features=2 * lstm if lstm else width, crf=crf, constrain=constrain)
        self.pad_token_id = pad_token_id
        self.encoder = encoder
        self.embedding = None if embedding is None else nn.Embedding(vocab_size, embedding, padding_idx=pad_token_id)
        self.fusion: DynamicFusion | Concatenation | None = None
        if encoder is not None and fusion != "last":
            self.fusion = Concatenation() if fusion == "concat" else DynamicFusion(layers)
        self.lstm = nn.LSTM(width, lstm, batch_first=True, bidirectional=True) if lstm else None
        self.dropout = nn.Dropout(dropout)
        # Numbered like tags: 0 for no annotation, and four numbers for each type (BIES).
        self.privileged = nn.Embedding(1 + 4 * len(privileged["types"]), privileged["size"]) if privileged else None

    @property
    def reads_beside(self) -> tuple[str, ...]:
        """Names of the arguments of `forward` that it needs beside the text."""
        return () if self.privileged is None else ("privileged",)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        tags: Tensor | None = None,
        marginals: bool = False,
        privileged: Tensor | None = None,
    ) -> TaggerOutput:
        """Emissions and, where asked for, likelihood and marginals of texts padded on the right.

        Args:
            input_ids: int64 [B, L], one token per character; with an encoder, between [CLS] and [SEP], which get no
                tag, so that N = L - 2; without an encoder N = L.
            attention_mask: [B, L], 1 for tokens and 0 for padding; at least one character a row.
            token_type_ids: int64 [B, L] or None; for encoders that have them.
            tags: int64 [B, N], -1 at padding and everywhere in rows without tags.
            marginals: whether to compute the log marginals, too.
            privileged: for a model that reads annotations, int64 [B, N], numbered like tags; 0 for none and at padding.

        Raises:
            ValueError: annotations are given to a model that reads none, or are missing for one that reads them.
        """
        if (privileged is None) != (self.privileged is None):
            raise ValueError("privileged: " + ("are read, and none given" if privileged is None else "are not read"))
        if self.encoder is None:
            mask = attention_mask.bool()
            assert self.embedding is not None
            states = self.dropout(self.embedding(input_ids.masked_fill(~mask, self.pad_token_id)))
        else:
            mask = attention_mask[:, SPECIALS:].bool()
            states = self._encoded(input_ids, attention_mask, token_type_ids)[:, 1:-1]
        if self.privileged is not None and privileged is not None:
            states = torch.cat([states, self.privileged(privileged).to(states.dtype)], dim=-1)
        if self.lstm is not None:
            states = self._read_both_ways(self.lstm, states, mask)
        return self.answer(self.dropout(states), mask, tags, marginals)._replace(states=states)

    def _encoded(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        assert self.encoder is not None
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        output = self.encoder(**inputs, output_hidden_states=self.fusion is not None)
        if self.fusion is None:
            return output.last_hidden_state
        return self.fusion(output.hidden_states[1:])  # the first is the embedding layer

    @staticmethod
    def _read_both_ways(lstm: nn.LSTM, states: Tensor, mask: Tensor) -> Tensor:
        """[B, N, H] -> [B, N, 2 lstm] in the dtype of the LSTM's weights, zero at padding."""
        states = states.to(next(lstm.parameters()).dtype)
        with torch.autocast(states.device.type, enabled=False):
            return read_both_ways(lstm, states, mask.sum(1))


def _layers_and_width(config: Any, fusion: str) -> tuple[int, int]:
    """The number of layers in an encoder's configuration, and the size of their fused states."""
    if fusion not in FUSIONS:
        raise ValueError(f"fusion: unknown {fusion!r} (allowed: {', '.join(FUSIONS)})")
    layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    if fusion != "concat":
        return layers, width
    if layers < CONCATENATED:
        raise ValueError(f"fusion: concat needs {CONCATENATED} layers, the encoder has {layers}")
    return layers, CONCATENATED * width
