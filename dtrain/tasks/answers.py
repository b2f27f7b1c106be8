"""Answers of a trained model to new text: what each kind of task says of how they are found and written down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dtrain.data import Part, inference_batches
from dtrain.data.dataset import PreparedData
from dtrain.distributed import World
from dtrain.recipe.data import Data, Normalization
from dtrain.training.inference import BATCH_TOKENS, forward_outputs

T = TypeVar("T")


@dataclass(frozen=True)
class Texts:
    """What is to be labelled, a list a column."""

    ids: list[str | int]
    text: list[str]
    text_b: list[str]  # pairs only, else empty
    lines: list[int]  # where each row began in its file, from 1


@dataclass(frozen=True)
class Workers:
    """Who computes answers, and how: all ranks of a world, or without one this process alone."""

    world: World | None = None
    precision: str = "fp32"
    batch_tokens: int = BATCH_TOKENS
    device: torch.device = torch.device("cpu")  # without a world

    def outputs(
        self, model: nn.Module, part: Part, outputs: Callable[[Any], tuple[Tensor, ...]]
    ) -> Iterator[tuple[np.ndarray, tuple[Tensor, ...]]]:
        """Rows of this rank's batches, and what `outputs` keeps of the model's output for them.

        The batches are a function of the part alone and dealt out in turn, so that ranks change no answer.
        """
        world = self.world
        batches = inference_batches(part.lengths, self.batch_tokens)
        mine = batches[world.rank :: world.size] if world else batches
        answers = forward_outputs(
            model,
            part,
            mine,
            outputs=outputs,
            device=world.device if world else self.device,
            precision=self.precision,
            threads=world.threads if world else torch.get_num_threads(),
        )
        return zip(mine, answers, strict=True)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks."""
        return self.world.sum(tensor) if self.world else tensor

    def gather(self, value: T) -> list[T]:
        """Every rank's value."""
        return self.world.gather_objects(value) if self.world else [value]


class Answers(ABC):
    """How models of one kind of task answer."""

    forms: tuple[str, ...]  # what `dtrain predict --form` can write
    formats: tuple[str, ...]  # what `dtrain predict --format` can read

    @abstractmethod
    def encode(self, model: Path, texts: Texts, normalize: Normalization, max_length: int) -> Part:
        """Texts as the model in this folder reads them."""

    @abstractmethod
    def find(self, model: nn.Module, part: Part, texts: Texts, workers: Workers) -> Iterable[Any]:
        """The model's answer to each text, in their order, on every rank; plain values, as JSON has them."""

    @abstractmethod
    def lines(
        self, texts: Texts, answers: Iterable[Any], form: str, section: Data, data: PreparedData
    ) -> Iterator[str]:
        """The answers as lines of a file, in one of `forms`.

        Args:
            section: the recipe's; data: what was prepared from it. Some forms are those of the user's own files.
        """


def model_labels(model: nn.Module) -> list[str]:
    """Names of a model's outputs, in their order."""
    config: Any = model.config
    names = config["id2label"] if isinstance(config, dict) else config.id2label
    return [names[key] for key in sorted(names, key=int)]
