"""The NEZHA configuration: BERT's, with a clipping distance for relative positions."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class NezhaConfig(PreTrainedConfig):
    """Shape of a NEZHA encoder (Wei et al. 2019, arXiv 1909.00204); the defaults are `nezha-cn-base`.

    `max_relative_position` is the distance beyond which two tokens count as equally far.
    `max_position_embeddings` is kept because released files carry it; nothing limits the length of an input.

    Raises:
        ValueError: for a shape that no NEZHA can have.
    """

    model_type = "nezha"

    vocab_size: int = 21128
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    max_relative_position: int = 64
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout: float | None = 0.1
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | None = 3
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"a head of {self.head_size} has no sine and cosine pairs: it must be even")
        if self.max_relative_position < 1:
            raise ValueError(f"max_relative_position is {self.max_relative_position}: it must be at least 1")
        if getattr(self, "is_decoder", False) or getattr(self, "add_cross_attention", False):
            raise ValueError("NEZHA is an encoder here: is_decoder and add_cross_attention must be false")
        if not getattr(self, "use_relative_position", True):
            raise ValueError("use_relative_position is false: those weights are a BERT's, not a NEZHA's")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads
