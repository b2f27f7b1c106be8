"""Models that read a text and write another: encoder-decoders, of classes of the library transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from dtrain.losses.layers import EncoderShape
from dtrain.recipe.models import WRITING, EncoderSpec, register_architecture
from dtrain.recipe.values import Size


class Seq2SeqSpec(EncoderSpec):
    """An encoder and a decoder; `layers`, `hidden`, `heads` and `intermediate` hold for each of the two."""

    builder: ClassVar[str | None] = "dtrain.models.seq2seq:build_seq2seq"
    graph: ClassVar[str | None] = WRITING
    encodes: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("seq2seq",)
    decoder_layers: Size | None = None  # layers of the decoder; default: as many as the encoder has

    @model_validator(mode="after")
    def from_scratch_or_whole(self) -> Self:
        if self.vocabulary is not None:
            raise ValueError("vocabulary: what is written is put together from pieces that are learnt; leave it out")
        if self.init is not None:
            raise ValueError("init: copies layers of a BERT or NEZHA, and an encoder-decoder has none")
        return self

    @model_serializer(mode="wrap")
    def without_what_is_left_open(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = self.without_what_it_is_given(handler)
        return {key: value for key, value in values.items() if value is not None or key != "decoder_layers"}

    @property
    def depth(self) -> tuple[int, int]:
        """Layers of the encoder and of the decoder of a model from scratch."""
        layers = self.shape()[1]
        return layers, self.decoder_layers or layers

    @property
    def two_vocabularies(self) -> bool:
        """Whether source and target have a vocabulary each."""
        return False

    @property
    def feature_width(self) -> int | None:
        return None

    @property
    def encoder_shape(self) -> EncoderShape | None:
        return None

    @property
    def multiply_adds(self) -> float:
        hidden = self.shape()[0]
        encoder, decoder = self.depth
        return hidden * hidden * (12.0 * encoder + 16.0 * decoder)  # a decoder also attends to the encoder

    @property
    def reading(self) -> list[Any]:
        return ["pieces", self.two_vocabularies]

    def unlike_folder(self, folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
        if config.get("model_type", self.type) != self.type:
            yield f"is of type {config['model_type']!r}, not {self.type!r}"
        elif problem := without_a_start(config):
            yield problem

    def config(self) -> dict[str, Any]:
        """The values of the transformers configuration that give a model from scratch its shape."""
        hidden, _, heads = self.shape()
        between = self.intermediate or 4 * hidden
        encoder, decoder = self.depth
        return {
            "model_type": self.type,
            "d_model": hidden,
            "encoder_layers": encoder,
            "decoder_layers": decoder,
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
            "encoder_ffn_dim": between,
            "decoder_ffn_dim": between,
            **self.extras,
        }


@register_architecture
class MarianSpec(Seq2SeqSpec):
    """Marian (Junczys-Dowmunt et al. 2018): the transformer of Vaswani et al. 2017, with sinusoidal positions."""

    type: Literal["marian"]
    # shared: one vocabulary for source and target; two: one for each, for languages that share no script
    vocabularies: Literal["shared", "two"] = "shared"

    @property
    def two_vocabularies(self) -> bool:
        return not self.pretrained and self.vocabularies == "two"

    def unlike_folder(self, folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
        """As in the base class; also a tokenizer without a fast form, as transformers' `MarianTokenizer` has none."""
        problems = list(super().unlike_folder(folder, config))
        yield from problems
        if problems:
            return
        kind = "MarianTokenizer" if (folder / "tokenizer.json").is_file() else None
        try:
            said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            kind = str(said.get("tokenizer_class") or kind) if kind else None
        except (OSError, ValueError, AttributeError):
            pass  # without this file, the class is that of the model's type
        if kind in (None, "MarianTokenizer"):
            found = "holds no tokenizer.json" if kind is None else "names no other class than MarianTokenizer for it"
            yield (
                f"its tokenizer has no fast form (a tokenizer.json, with tokenizer_config.json's tokenizer_class "
                f"PreTrainedTokenizerFast): the folder {found}"
            )


@register_architecture
class BartSpec(Seq2SeqSpec):
    """BART (Lewis et al. 2019): learnt positions, and one vocabulary for source and target."""

    type: Literal["bart"]


def without_a_start(config: Mapping[str, Any]) -> str | None:
    """Why an encoder-decoder's config.json gives no valid `decoder_start_token_id`; None if it gives one."""
    start, tokens = config.get("decoder_start_token_id"), written_tokens(config)
    if not isinstance(start, int):
        return "config.json names no decoder_start_token_id, with which a model begins to write"
    if tokens and not 0 <= start < tokens:
        return f"config.json says decoder_start_token_id {start}, and that there are {tokens} tokens"
    return None


def written_tokens(config: Mapping[str, Any]) -> int:
    """The size of the target vocabulary according to an encoder-decoder's config.json; 0 if it does not tell."""
    apart = config.get("share_encoder_decoder_embeddings") is False
    return int((config.get("decoder_vocab_size") if apart else None) or config.get("vocab_size") or 0)
