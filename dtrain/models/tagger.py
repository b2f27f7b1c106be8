"""The tagger: encoder or character embedding -> fusion of layers -> BiLSTM -> emissions -> CRF or softmax.

With NEZHA, dynamic fusion, BiLSTM and CRF it is the teacher of the published table; each part can be left out.
"""

from __future__ import annotations

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
    ) -> None:
        if encoder is None:
            if embedding is None or fusion != "last":
                raise ValueError("without an encoder, a tagger needs an embedding and has one layer (fusion: last)")
            width = embedding
            layers = 1
        else:
            layers, width = _layers_and_width(encoder.config, fusion)
        super().__init__(tags=tags, features=2 * lstm if lstm else width, crf=crf, constrain=constrain)
        self.pad_token_id = pad_token_id
        self.encoder = encoder
        self.embedding = None if embedding is None else nn.Embedding(vocab_size, embedding, padding_idx=pad_token_id)
        self.fusion: DynamicFusion | Concatenation | None = None
        if encoder is not None and fusion != "last":
            self.fusion = Concatenation() if fusion == "concat" else DynamicFusion(layers)
        self.lstm = nn.LSTM(width, lstm, batch_first=True, bidirectional=True) if lstm else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        tags: Tensor | None = None,
        marginals: bool = False,
    ) -> TaggerOutput:
        """Emissions, and where asked for likelihood and marginals, of texts padded on the right.

        Args:
            input_ids: int64 [B, L], a token a character; for an encoder between [CLS] and [SEP], which get no tag:
                N = L - 2, without an encoder N = L.
            attention_mask: [B, L], 1 for tokens and 0 for padding; at least one character a row.
            token_type_ids: int64 [B, L] or None; for encoders that have them.
            tags: int64 [B, N], -1 at padding and all over rows without tags.
            marginals: also the log marginals.
        """
        if self.encoder is None:
            mask = attention_mask.bool()
            assert self.embedding is not None
            states = self.dropout(self.embedding(input_ids.masked_fill(~mask, self.pad_token_id)))
        else:
            mask = attention_mask[:, SPECIALS:].bool()
            states = self._encoded(input_ids, attention_mask, token_type_ids)[:, 1:-1]
        if self.lstm is not None:
            states = self._read_both_ways(self.lstm, states, mask)
        return self.answer(self.dropout(states), mask, tags, marginals)

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
    """Of an encoder's configuration: its layers, and the size of their fused states."""
    if fusion not in FUSIONS:
        raise ValueError(f"fusion: unknown {fusion!r} (allowed: {', '.join(FUSIONS)})")
    layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    if fusion != "concat":
        return layers, width
    if layers < CONCATENATED:
        raise ValueError(f"fusion: concat needs {CONCATENATED} layers, the encoder has {layers}")
    return layers, CONCATENATED * width
