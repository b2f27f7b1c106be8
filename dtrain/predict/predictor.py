"""`Predictor`: a model folder that answers new text, independently of its run folder."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch

from dtrain.data.schemes import Span
from dtrain.engines.precision import resolve_precision
from dtrain.errors import InputError
from dtrain.models import load
from dtrain.models.multi_task import for_task
from dtrain.predict.blocks import blocks, find_answers
from dtrain.predict.folder import read_folder
from dtrain.recipe.values import Precision
from dtrain.training.inference import cast_products, pack_products
from dtrain.training.workers import Workers

SURROGATE = re.compile("[\ud800-\udfff]")  # escapes in JSON can denote half of a surrogate pair


class Predictor:
    """Answers new text as `dtrain predict` does: `predictor(texts)`, or `predictor(texts, texts_b)` for pairs.

    Several threads may call one predictor at once. A CPU computes each batch on one core, and several batches in
    parallel, so that an answer does not depend on the number of cores.

    Args:
        folder: a model folder that dtrain wrote; it says how texts are prepared.
        device: the device of the model.
        batch_tokens: padded tokens in one call of the model; None: 512 for a transformer on a CPU, else 4096.
        task: the task to answer, for a model of several tasks.
        precision: `fp32`, or the type of matrix products: `bf16`, about twice as fast for a transformer on a CPU that
            supports it; `fp16` on a GPU; `auto`: bf16 on GPUs that support it, else fp32.
        beam: number of hypotheses of beam search, for a model that generates text; 1: greedy decoding.
        length_penalty: for beam search; the score of a hypothesis of n tokens is its log-probability divided by n to
            this power.

    Attributes:
        privileged: types of the annotations that the model reads with each text; empty if it reads none.

    Raises:
        InputError: the folder is no model folder, or does not say how its texts were prepared; it has several tasks and
            none is named, or an unknown one; the precision is unknown, or the device does not support it; the device
            does not exist; `beam` is given for a model that generates no text, or is more than its number of tokens.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str | torch.device = "cpu",
        batch_tokens: int | None = None,
        task: str | None = None,
        precision: str = "fp32",
        beam: int = 1,
        length_penalty: float = 1.0,
    ) -> None:
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens: {batch_tokens} is not a positive number of tokens")
        self.folder = Path(folder)
        self.device = _device(device)
        self.batch_tokens = batch_tokens
        if precision not in get_args(Precision):
            raise InputError(f"precision: {precision!r} is unknown (allowed: {', '.join(get_args(Precision))})")
        self.precision = resolve_precision(precision, self.device, "precision")
        known = read_folder(self.folder, task)
        self._answers = known.answers
        if beam != 1:
            self._answers = known.answers.searching(self.folder, beam, length_penalty, "beam")
        model = for_task(load(self.folder, self.device), task or "")
        self.model = pack_products(cast_products(model, self.precision, self.device), self.device)
        self.task, self.texts, self.normalize, self.max_length = (
            known.task,
            known.texts,
            known.normalize,
            known.max_length,
        )
        self.privileged = self._answers.reads_privileged(self.folder)
        self._read = self._answers.reader(self.folder, self.normalize, self.max_length)

    def __call__(
        self, texts: list[str], texts_b: list[str] | None = None, privileged: list[Any] | None = None
    ) -> list[Any]:
        """The answer to each text.

        Args:
            texts: the texts, or the first texts of pairs.
            texts_b: the second texts of pairs.
            privileged: for a teacher that reads annotations, those of each text: a list of [start, end, type] with
                exclusive ends, or of entities as a tagger answers them.

        Returns:
            For each row: of a classifier a mapping with the `label`, its probability `score`, and the probabilities
            `scores` of all labels; of a tagger a list of entities with `text`, `type`, `start`, `end` (exclusive) and
            `score`, the least probability of a tag among its characters; of task regression a mapping with the
            `number`; of multi_label one with `labels`, and `scores` of all labels; of seq2seq one with the `target`.

        Raises:
            InputError: the model reads pairs and one text is given, or the reverse; something is no text; annotations
                are missing, of an unknown type, or given to a model that reads none.
        """
        return list(self.stream(texts, texts_b, privileged))

    def stream(
        self,
        texts: Iterable[str],
        texts_b: Iterable[str] | None = None,
        privileged: Iterable[Any] | None = None,
    ) -> Iterator[Any]:
        """As `__call__`, for any number of texts, as from a generator; a few thousand at a time are in memory.

        Raises:
            InputError: as `__call__`; answers to earlier rows may have been yielded before.
        """
        if (texts_b is None) != (self.texts == 1):
            needed = "one text" if self.texts == 1 else "two texts"
            raise InputError(f"{self.folder}: is a model for task {self.task!r}; give {needed} a row")
        if isinstance(texts, str) or isinstance(texts_b, str):
            raise InputError("give a list of texts, not one text")
        if (privileged is None) == bool(self.privileged):
            types = ", ".join(self.privileged)
            what = f"reads annotations ({types}); give those of each text" if types else "reads the text alone"
            raise InputError(f"privileged: {self.folder} {what}")
        beside = None if privileged is None else _spans(privileged)
        rows = blocks(_checked(texts), None if texts_b is None else _checked(texts_b), beside)
        workers = Workers(self.device, torch.get_num_threads(), self.precision, self.batch_tokens)
        return find_answers(self._answers, self.model, self._read, rows, workers)


def _spans(privileged: Iterable[Any]) -> Iterator[list[Span]]:
    """The annotations of each text, in either form, as spans."""
    for row, given in enumerate(privileged):
        try:
            yield [_span(*((one["start"], one["end"], one["type"]) if isinstance(one, dict) else one)) for one in given]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"row {row}: privileged: must be a list of [start, end, type], found {given!r}") from None


def _span(start: Any, end: Any, kind: Any) -> Span:
    """A span; raises TypeError unless the arguments are two whole numbers and a text."""
    if not isinstance(kind, str):
        raise TypeError
    return Span(operator.index(start), operator.index(end), kind)


def _device(name: str | torch.device) -> torch.device:
    try:
        found = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: {name!r} is unknown (cpu, cuda, cuda:1, ...)") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: {str(name)!r}: torch sees no GPU here")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: {str(name)!r}: torch sees {torch.cuda.device_count()} GPU(s) here, counted from 0")
    return found


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"row {place}: must be a text, found {type(text).__name__}")
        if not text.isascii() and SURROGATE.search(text):  # tokenizers refuse it
            raise InputError(f"row {place}: holds half of a surrogate pair (an escape from \\ud800 to \\udfff)")
        yield text
