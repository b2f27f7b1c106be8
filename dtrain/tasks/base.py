"""What a kind of task decides for training and scoring: its batches, what its losses may ask for, its scores."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dtrain.data import EncodedSplit
from dtrain.data.batch import Batch
from dtrain.errors import DtrainError
from dtrain.knowledge.kinds import layer_of
from dtrain.losses.registry import TWICE
from dtrain.models.inside import taking, twice_differentiable

if TYPE_CHECKING:
    from dtrain.data import PreparedData
    from dtrain.knowledge.reader import StoreReader
    from dtrain.recipe.schema import Knowledge
    from dtrain.recipe.training import LossSpec, Teacher
    from dtrain.training.workers import Workers


class Task(ABC):
    """How rows are trained on and scored.

    Args:
        labels: names of the classes or tags, in the order of a model's outputs.
        types: entity types; empty for classification.
    """

    name: str
    card_tag: str  # `pipeline_tag` of model cards

    def __init__(self, labels: list[str], types: list[str]) -> None:
        self.labels = labels
        self.types = types

    @classmethod
    def of(cls, data: PreparedData) -> Task:
        """The task of prepared data."""
        return cls(data.labels, data.info.get("types", []))

    @property
    def config(self) -> dict[str, Any]:
        """What the `config.json` of its models says beside their shape and labels."""
        return {}

    @property
    def answer_in_words(self) -> str:
        """What its models answer with, as a model card says it."""
        names = self.types or self.labels
        shown = ", ".join(names[:40]) + (" ..." if len(names) > 40 else "")
        return f"{'entity types' if self.types else 'labels'}: {shown}"

    ways: tuple[str, ...] = ("",)  # in which models are timed, each a word; the first needs none

    compared: tuple[str, ...] = ()  # scores that an export is compared by, beside the one that models are chosen by

    def timed(self, model: nn.Module, part: EncodedSplit, way: str) -> nn.Module:
        """What is called with collated rows of `part` where a model's speed is measured."""
        return model

    def settle(self, knowledge: Knowledge) -> None:
        """Take from the recipe's section what scoring depends on."""
        return

    def check_vocabulary(self, name: str, tokens: int) -> None:
        """Look at how many tokens are written with a tokenizer of the recipe; 0: with this one nothing is written.

        Raises:
            InputError: fewer than what was settled needs.
        """
        return

    def answering(self, model: nn.Module, part: EncodedSplit, outputs: Sequence[str]) -> tuple[nn.Module, str | None]:
        """What is called with collated rows of `part` for outputs that are to be stored; and how texts are looked for, in
        words, where it writes some."""
        return model, None

    def taught(self, kind: str, data: PreparedData, tokenizer: str, teacher: str, store: StoreReader) -> EncodedSplit:
        """Rows whose labels are what a teacher has stored.

        Args:
            kind: as `students.N.rows` has it.
            tokenizer: the reader's; teacher: the teacher's.

        Raises:
            ValueError: this kind of task has none.
        """
        raise ValueError(f"{kind}: a task {self.name!r} has no such rows")

    @abstractmethod
    def units(self, rows: EncodedSplit) -> np.ndarray:
        """What each row counts in the mean that is trained on, int [N]."""

    @abstractmethod
    def teacher_losses(self, spec: Teacher) -> list[LossSpec]:
        """The terms that a teacher is trained on."""

    @abstractmethod
    def collate(self, rows: EncodedSplit, index: np.ndarray, needs: set[str]) -> Batch:
        """The rows at positions `index` [B] as a batch on the CPU; `needs` are the losses' (`LossSum.needs`)."""

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]:
        """Call the model once for a batch, and name what the losses need of what it returns."""

    def ask(self, model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]:
        """`outputs`, and what losses need of the inside of the model."""
        inside = {name for name in needs if layer_of(name)}
        once_more = twice_differentiable(model) if TWICE in needs else contextlib.nullcontext()
        with taking(model, inside) as taken, once_more:
            found = self.outputs(model, batch, needs - inside - {TWICE})
        if "token_mask" in needs:
            ids = batch.inputs["input_ids"]
            found["token_mask"] = batch.inputs.get("attention_mask", torch.ones_like(ids)).bool()
        return found | taken()

    @abstractmethod
    def scores(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, float]:
        """Scores of a part's labelled rows, and `loss`."""

    @abstractmethod
    def record(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, Any]:
        """What `evaluation.json` tells of a part, the scores included."""

    @abstractmethod
    def headline(self, scores: Mapping[str, float]) -> str:
        """The scores that matter most, in words."""


def check_coverage(part: EncodedSplit, times: Tensor) -> None:
    """Raise DtrainError unless every labelled row, and no other, was scored once; `times` [N] says how often."""
    wrong = np.flatnonzero(times.numpy() != (part.labels >= 0))
    if len(wrong):
        shown = ", ".join(f"{part.ids[i]} ({times[i]:g} times)" for i in wrong[:5])
        raise DtrainError(f"{len(wrong)} rows were not scored once: ids {shown}; do all ranks see the same data?")
