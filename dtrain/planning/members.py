"""What decides the memory that a recipe's models need: parameters, activations, and rows per step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, PreTrainedConfig

from dtrain.models import build
from dtrain.planning.pairs import pair_activations, pair_config, pair_shape
from dtrain.planning.trial import (
    CLASSES,
    Activations,
    Shape,
    module_activations,
    transformer_activations,
    transformer_shape,
)
from dtrain.recipe import Recipe
from dtrain.recipe.models import Architecture, EncoderSpec, ExternalSpec
from dtrain.recipe.training import Student, Teacher, TrainSpec

WORDS = 20_000  # assumed size of a vocabulary, which is not known before the data is prepared
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
CHINESE = 21_128  # size of the vocabulary of bert-base-chinese


@dataclass(frozen=True)
class Member:
    """A model that is trained: a teacher, a student, or a phase of pre-training.

    Attributes:
        config: the transformers configuration of its transformer; None if it has none.
        length: tokens of the longest rows.
        precision: 'fp32', 'bf16' or 'fp16'.
        assumed: what was assumed because it is not known, in words.
        predicted: masked tokens of a row, in pre-training.
        pair: the configuration of an encoder-decoder; None for other models.
    """

    spec: TrainSpec
    config: dict[str, Any] | None
    length: int
    precision: str
    assumed: tuple[str, ...]
    predicted: int = 0
    pair: PreTrainedConfig | None = None

    @property
    def rows(self) -> int:
        """Rows of a step over all ranks; of several phases, those of the phase that has the most."""
        return max(self._rows(training) for training in self._trainings)

    def micro_batch(self, ranks: int) -> int:
        """Rows of one rank's largest micro-batch."""
        return max(-(-self._rows(training) // (ranks * training.accumulation)) for training in self._trainings)

    @property
    def passes(self) -> int:
        """Backward passes of a step."""
        return self.spec.accumulation * (2 if self.spec.adversarial else 1)

    @property
    def _trainings(self) -> Sequence[TrainSpec]:
        return self.spec.trainings if isinstance(self.spec, Student) else [self.spec]

    def _rows(self, training: TrainSpec) -> int:
        return training.batch_size or max(1, (training.batch_tokens or 0) // self.length)

    @functools.cached_property
    def shape(self) -> Shape:
        """The sizes of the model; an estimate where it cannot be built without data."""
        if self.pair is not None:
            return pair_shape(self.pair)
        if self.config is not None:
            return transformer_shape(self.config, self.predicted)
        with contextlib.suppress(Exception), FakeTensorMode():
            sizes = [p.numel() for p in self._make().parameters()]
            return Shape(sum(sizes), len(sizes), 0, 0, max(sizes))
        # A model that cannot be built without data: count its embeddings, and about one weight for each multiply-add.
        table = WORDS * getattr(self.spec.model, "embedding", 0)
        return Shape(table + round(self.spec.model.multiply_adds), 16, 0, 0, table)

    def activations(self, checkpointing: bool) -> Activations:
        """The memory of its activations; `checkpointing`: whether the layers of a transformer are recomputed."""
        if self.pair is not None:
            return pair_activations(self.pair, self.length, self.precision, checkpointing)
        if self.config is not None:
            return transformer_activations(self.config, self.length, self.precision, checkpointing, self.predicted)
        with contextlib.suppress(Exception):
            return module_activations(self._make, self.length, self.precision)
        # LSTMs read the values of their inputs, which fake tensors do not have. cuDNN keeps four gates and two states
        # for each direction; about as much again is needed for a moment.
        model: Any = self.spec.model
        width = getattr(model, "embedding", 0) * 4 + getattr(model, "hidden", 0) * getattr(model, "layers", 1) * 2 * 14
        return Activations(((4.0 * self.length * max(width, 64), 0.0),), "formula")

    def _make(self) -> nn.Module:
        labels = [str(number) for number in range(CLASSES)]
        return build(
            self.spec.model, vocabulary=WORDS, labels=labels, pad_id=0, max_length=self.length, privileged=labels
        )


def members_of(recipe: Recipe, section: str) -> Iterator[Member]:
    """The models of the section `teachers` or `students`; for `pretrain`, its phases.

    Teachers from a folder (`from`) are left out, as they are not trained.
    """
    if section == "pretrain":
        yield from _phases(recipe)
        return
    for view in recipe.views():
        found: list[Teacher | Student] = getattr(view, section)
        for spec in found:
            if isinstance(spec.model, ExternalSpec):
                continue
            length, encoder = _length(spec, view), spec.model.transformer
            if encoder is not None and not encoder.encodes:
                pair, assumed = pair_config(encoder, encoder.vocabulary_size, length)
                yield Member(spec, None, length, _precision(spec), tuple(assumed), pair=pair)
                continue
            config, assumed = _config(spec.model, recipe)
            yield Member(spec, config, length, _precision(spec), tuple(assumed))


def _phases(recipe: Recipe) -> Iterator[Member]:
    if recipe.pretrain is None:
        return
    for number, phase in enumerate(recipe.pretrain.phases):
        spec = recipe.pretrain.training(number)
        config, assumed = _config(spec.model, recipe)
        predicted = max(1, round(recipe.pretrain.masking.share * phase.max_length))
        yield Member(spec, config, phase.max_length, _precision(spec), tuple(assumed), predicted)


def _length(spec: TrainSpec, view: Recipe) -> int:
    """Tokens of the longest rows of a model; phases on plain text have a length of their own."""
    phases = spec.phases or [] if isinstance(spec, Student) else []
    return max([view.data.max_length, *(phase.max_length or 0 for phase in phases)])


def _precision(spec: TrainSpec) -> str:
    return "bf16" if spec.precision == "auto" else spec.precision


def _config(model: Architecture, recipe: Recipe) -> tuple[dict[str, Any] | None, list[str]]:
    """The configuration of the transformer in a model, and what was assumed."""
    encoder = model.transformer
    if encoder is None:
        return None, [f"a vocabulary of {WORDS:,} words"]
    if encoder.made_here and recipe.pretrain is not None:
        return _config(recipe.pretrain.model, recipe)
    kind = str(encoder.type)
    if not encoder.pretrained:
        hidden, layers, heads = encoder.shape()
        shape = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
        size, assumed = _vocabulary(encoder)
        own = {"model_type": kind, "vocab_size": size, "intermediate_size": encoder.intermediate or 4 * hidden}
        return {**own, **shape, **encoder.extras}, assumed
    name = str(encoder.source)
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False).to_dict()
    except (OSError, ValueError):
        return {"model_type": kind, "vocab_size": CHINESE, **BASE}, [f"{name} is not here: the shape of a BERT-base"]
    return config, []


def _vocabulary(encoder: EncoderSpec) -> tuple[int, list[str]]:
    if encoder.vocabulary and Path(encoder.vocabulary).is_file():
        with Path(encoder.vocabulary).open(encoding="utf-8") as file:
            return sum(1 for _ in file), []
    return encoder.vocabulary_size, []


def torch_sees() -> tuple[int, float]:
    """The number of GPUs that torch sees on this machine, and the bytes of memory of the smallest one."""
    if not torch.cuda.is_available():
        return 0, 0.0
    sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    return len(sizes), float(min(sizes))
