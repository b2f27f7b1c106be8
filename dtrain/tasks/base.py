"""The base class of kinds of task in training and scoring: batches, the tensors that losses read, and scores."""

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
    """How rows of one kind of task are trained on and scored.

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
        """Entries of the `config.json` of its models besides their shape and labels."""
        return {}

    @property
    def answer_in_words(self) -> str:
        """What its models answer with, as a phrase for the model card."""
        names = self.types or self.labels
        shown = ", ".join(names[:40]) + (" ..." if len(names) > 40 else "")
        return f"{'entity types' if self.types else 'labels'}: {shown}"

    ways: tuple[str, ...] = ("",)  # modes of inference whose speed is measured; the default comes first, without a name

    # Scores by which an export is compared with the original model, besides the metric that models are chosen by.
    compared: tuple[str, ...] = ()

    def timed(self, model: nn.Module, part: EncodedSplit, way: str) -> nn.Module:
        """The module that is called with collated rows of `part` when speed is measured; `way` is one of `ways`."""
        return model

    def settle(self, knowledge: Knowledge) -> None:
        """Store the settings of the recipe's section `knowledge` that scoring depends on."""
        return

    def check_vocabulary(self, name: str, tokens: int) -> None:
        """Check that a tokenizer has enough tokens for the settings that `settle` stored.

        Args:
            name: the tokenizer's name in the recipe.
            tokens: number of tokens that can be generated with it; 0 if no text is generated with it.

        Raises:
            InputError: there are too few.
        """
        return

    def answering(self, model: nn.Module, part: EncodedSplit, outputs: Sequence[str]) -> tuple[nn.Module, str | None]:
        """The module that is called with collated rows of `part` to compute outputs for the knowledge store.

        Args:
            outputs: the kinds of output that are to be stored.

        Returns:
            The module, and a description of its decoding; None in place of the latter where no text is generated.
        """
        return model, None

    def taught(self, kind: str, data: PreparedData, tokenizer: str, teacher: str, store: StoreReader) -> EncodedSplit:
        """Rows whose labels are taken from a teacher's knowledge store.

        Args:
            kind: the kind of rows, as in `students.N.rows`.
            tokenizer: name of the tokenizer that the student reads with.
            teacher: name of the teacher's tokenizer.

        Raises:
            ValueError: this kind of task has no such rows.
        """
        raise ValueError(f"{kind}: a task {self.name!r} has no such rows")

    @abstractmethod
    def units(self, rows: EncodedSplit) -> np.ndarray:
        """The weight of each row in the denominator of the mean training loss, int [N]: 1, or its number of tokens."""

    @abstractmethod
    def teacher_losses(self, spec: Teacher) -> list[LossSpec]:
        """The loss terms that a teacher is trained on."""

    @abstractmethod
    def collate(self, rows: EncodedSplit, index: np.ndarray, needs: set[str]) -> Batch:
        """The rows at positions `index` [B] as a batch on the CPU; `needs` names what losses read (`LossSum.needs`)."""

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]:
        """Call the model once for a batch, and return those of its outputs that the losses need, by name."""

    def ask(self, model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]:
        """`outputs`, and in addition the tensors inside the model (such as hidden states) that losses need."""
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
        """The scores of a part's labelled rows, and their mean `loss`."""

    @abstractmethod
    def record(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, Any]:
        """The entry of `evaluation.json` for a part, with its scores."""

    @abstractmethod
    def headline(self, scores: Mapping[str, float]) -> str:
        """The most important scores as a short text."""


def check_coverage(part: EncodedSplit, times: Tensor) -> None:
    """Raise DtrainError unless each labelled row was scored once and no other row was; `times` [N] holds the counts."""
    wrong = np.flatnonzero(times.numpy() != (part.labels >= 0))
    if len(wrong):
        shown = ", ".join(f"{part.ids[i]} ({times[i]:g} times)" for i in wrong[:5])
        raise DtrainError(f"{len(wrong)} rows were not scored once: ids {shown}; do all ranks see the same data?")
