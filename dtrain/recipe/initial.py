"""Initial weights of a transformer, copied from a trained teacher of the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from dtrain.errors import suggest
from dtrain.recipe.values import Closed

if TYPE_CHECKING:
    from dtrain.recipe.context import Context, Reporter
    from dtrain.recipe.models import EncoderSpec

# What must be equal in both models for weights to be copied: the key in config.json, and the key in a recipe.
ALIKE = {
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "intermediate_size": "intermediate",
    "max_relative_position": "max_relative_position",
}


class InitSpec(Closed):
    """Initial weights: a trained teacher's embeddings and some of its layers (DistilBERT, 1910.01108, section 3)."""

    # name of the teacher, whose type and tokenizer the model must have
    source: Annotated[str, Field(alias="from", min_length=1)]
    # the teacher's layers to copy, one for each layer of the model and counted from 0, such as [0, 2, 4, 7, 9, 11]
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    every: PositiveInt | None = None  # in place of `layers`: the teacher's first layer and every k-th after it
    pooler: bool = True  # copy the pooler as well, if both have one

    @model_validator(mode="after")
    def one_way_to_choose(self) -> InitSpec:
        if (self.layers is None) == (self.every is None):
            raise ValueError("layers and every: give one of the two")
        return self

    @model_serializer(mode="wrap")
    def as_it_was_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {"from": values.pop("source"), **{key: value for key, value in values.items() if value is not None}}

    def chosen(self, layers: int) -> list[int]:
        """The layers to copy, counted from 0, of a teacher with `layers` layers."""
        return self.layers if self.layers is not None else list(range(0, layers, self.every or 1))

    def unlike(self, own: dict[str, Any], teacher: dict[str, Any]) -> tuple[str, str] | None:
        """A key of the model's section, and why a teacher's weights do not fit the model; None if they fit.

        Args:
            own: the transformers configuration of the model, as far as it is known.
            teacher: that of the teacher.
        """
        if own["model_type"] != teacher.get("model_type"):
            types = f"is a {own['model_type']}, and {self.source} a {teacher.get('model_type')}"
            return "init", f"{types}: layers are copied between models of one type; take `init` away, or the other type"
        for name, key in ALIKE.items():
            if name in own and name in teacher and own[name] != teacher[name]:
                found = f"{own[name]} is not that of {self.source}, whose weights init copies"
                return key, f"{found} (write {key}: {teacher[name]})"
        count = teacher["num_hidden_layers"]
        chosen = self.chosen(count)
        if wrong := [layer for layer in chosen if layer >= count]:
            return "init.layers", f"{self.source} has no layer {wrong[0]} (there are 0 to {count - 1})"
        if len(chosen) != own["num_hidden_layers"]:
            found = f"{len(chosen)} layers are copied from {self.source}, and the model has {own['num_hidden_layers']}"
            return "init", f"{found} (write layers: {len(chosen)}, or choose as many)"
        return None


def check_init(encoder: EncoderSpec, init: InitSpec, tokenizer: str, context: Context, report: Reporter) -> None:
    """Report, as far as the recipe tells, why a student cannot start from a teacher's weights.

    Args:
        tokenizer: the name of the tokenizer that the student reads with.
        report: the reporter of the encoder's section.
    """
    teacher = context.teachers.get(init.source)
    if teacher is None:
        known = ", ".join(context.teachers) or "none are defined"
        report(
            "init.from", f"no teacher {init.source!r}{suggest(init.source, list(context.teachers))} (allowed: {known})"
        )
        return
    inner = teacher.model.transformer
    if inner is None and not teacher.given:
        report("init.from", f"{init.source} is a {teacher.model.type}, which has no layers to copy")
    elif encoder.tokenizer is None or tokenizer != teacher.vocabulary:
        own = teacher.named_tokenizer
        report("tokenizer", f"init copies embeddings of the tokens of {init.source}: write tokenizer: {own}")
    elif inner is not None and not inner.pretrained and (problem := init.unlike(encoder.config(), inner.config())):
        report(*problem)
