"""A model folder that answers from text, wherever it was copied to."""

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

SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell half of a pair


class Predictor:
    """Answers as `dtrain predict` does: `predictor(texts)`, for pairs `predictor(texts, texts_b)`.

    Several threads may call one predictor at a time. A CPU computes a batch on one core and several batches at a time, so
    that an answer does not depend on the number of cores.

    Args:
        folder: of a model that dtrain wrote; it says how texts are prepared.
        device: where the model computes.
        batch_tokens: padded tokens in one call of the model; None: 512 for a transformer on a CPU, else 4096.
        task: of a model of several tasks, which to answer.
        precision: `fp32`, or what products are computed in: `bf16`, on a CPU that has such products about twice as fast
            for a transformer; `fp16` on a GPU; `auto`: bf16 on GPUs that compute in it, else fp32.
        beam: of a model that writes, hypotheses that it looks at; 1: the most likely token at each place.
        length_penalty: of a beam: a hypothesis of n tokens is scored by its log-probability over n to this power.

    Raises:
        InputError: the folder is no model folder, or does not say how its texts were prepared; of several tasks none is
            named, or one that it does not have; an unknown precision, or one that the device lacks; a device that is not
            here; a beam for a model that writes nothing, or one of more hypotheses than the model has tokens.
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
            privileged: for a teacher that reads annotations, those of each text: a list of [start, end, type], ends
                exclusive, or of what a tagger answers.

        Returns:
            Of a classifier its `label`, the label's probability `score`, and all probabilities `scores` by label. Of a
            tagger a list of entities: `text`, `type`, `start`, `end` (exclusive) and `score`, the least probability of a
            character's tag in it. Of task regression a `number`; of multi_label its `labels`, and all `scores`.

        Raises:
            InputError: one text a row for a model of pairs, or two for another; or something that is no text; no annotations
                for a model that reads them, or some that it does not know, or for a model that reads none.
        """
        return list(self.stream(texts, texts_b, privileged))

    def stream(
        self,
        texts: Iterable[str],
        texts_b: Iterable[str] | None = None,
        privileged: Iterable[Any] | None = None,
    ) -> Iterator[Any]:
        """The same for any number of texts, as from a generator; memory holds a few thousand rows at a time.

        Raises:
            InputError: as `__call__`; the first rows may have been answered then.
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
    """Annotations of texts, in either form, as spans."""
    for row, given in enumerate(privileged):
        try:
            yield [_span(*((one["start"], one["end"], one["type"]) if isinstance(one, dict) else one)) for one in given]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"row {row}: privileged: must be a list of [start, end, type], found {given!r}") from None


def _span(start: Any, end: Any, kind: Any) -> Span:
    """Raises TypeError where these are not two whole numbers and a text."""
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
    return found


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"row {place}: must be a text, found {type(text).__name__}")
        if not text.isascii() and SURROGATE.search(text):  # no tokenizer takes one
            raise InputError(f"row {place}: holds half of a surrogate pair (an escape from \\ud800 to \\udfff)")
        yield text
