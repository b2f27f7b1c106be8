"""A phase of a student on plain text: packed rows, masked anew in each epoch where a loss asks for it.

    student ── its transformer ──▶ states of layers ──▶ losses against a teacher that reads the same rows
                     └── a head of this phase ──▶ scores over the vocabulary at masked positions

The head is not part of the student, and is not published.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dtrain.data import tokenizer_name
from dtrain.data.batch import Batch
from dtrain.data.vocabularies import load_tokenizer
from dtrain.errors import counted
from dtrain.knowledge.kinds import layer_of
from dtrain.losses.objective import LossSum
from dtrain.models.inside import taking
from dtrain.models.with_vocabulary import WithVocabulary, vocabulary_head
from dtrain.plan import Plan
from dtrain.pretraining.plain_text import plain_text_of
from dtrain.pretraining.prepare import PARTS, corpus_tokenizer, prepare_corpus, rows_folder
from dtrain.recipe.corpus import MaskingSpec
from dtrain.recipe.phases import StudentPhase, asks_for_masks
from dtrain.recipe.training import Student
from dtrain.runfolder import RunFolder
from dtrain.runtime.distributed import World
from dtrain.runtime.stop import StopRequest
from dtrain.tasks.masked_lm.masking import Masker
from dtrain.tasks.masked_lm.packing import PackedRows
from dtrain.tasks.masked_lm.rows import MaskedRows
from dtrain.tasks.masked_lm.task import MaskedLanguageModel
from dtrain.teachers.online import OnlineTeacher
from dtrain.training.feed import Feed
from dtrain.training.job import Position
from dtrain.training.model_job import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def prepare_texts(plan: Plan, folder: RunFolder, names: set[str], stop: StopRequest) -> None:
    """Read and pack the texts for phases of the students `names`, where that is not done yet.

    Raises:
        InputError: files are not what the recipe says, or there is too little text to fill a row.
        Stopped: asked to stop; what is done stays.
    """
    for student in plan.recipe.students:
        text = plain_text_of(plan.recipe, student)
        if text is None or student.name not in names:
            continue
        tokenizer = _tokenizer(student, plan)
        with text.named():
            prepare_corpus(text.recipe, folder, plan.plain_text(student), stop, name=text.name, tokenizer=tokenizer)


@dataclass(frozen=True)
class Alone:
    """A world of one rank, for a student that this rank trains by itself: the other ranks take no part."""

    device: torch.device
    threads: int
    rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, of which there is one."""
        return values


class PlainTextPhase:
    """What a phase on plain text trains with.

    Args:
        training: the student with the settings of the phase.
        online: the teachers that run beside it, by name.
    """

    def __init__(
        self,
        training: Student,
        phase: StudentPhase,
        plan: Plan,
        folder: RunFolder,
        world: World,
        online: Mapping[str, OnlineTeacher],
    ) -> None:
        assert training.seed is not None
        assert phase.max_length is not None
        text = plain_text_of(plan.recipe, _student(plan, training.name))
        assert text is not None
        self.online, self.device = online, world.device
        self.world: Any = world if training.parallel == "data" else Alone(world.device, world.threads)
        self.masked = asks_for_masks(training.losses or [])
        self.tokenizer = load_tokenizer(corpus_tokenizer(folder, text.name))
        packed = rows_folder(folder, text.spec, phase.max_length, text.name)
        self.rows, self.held_out = (PackedRows.open(packed / part) for part in PARTS)
        special = set(self.tokenizer.all_special_ids)
        ordinary = np.array([token for token in range(len(self.tokenizer)) if token not in special])
        own = plan.recipe.pretrain.masking if plan.recipe.pretrain else MaskingSpec()
        masker = Masker(phase.masking or own, training.seed, self.tokenizer.mask_token_id, ordinary)
        self.task = MaskedLanguageModel(masker, separate=False)

    def prepared(self, plain: Prepared) -> Prepared:
        """What the phase trains with; `plain` is what the student trains with on rows of its task, and has the model."""
        rows = self.rows
        return replace(
            plain,
            make=functools.partial(self._make, plain),
            outputs=ask,
            feed=self._feed,
            evaluate=functools.partial(self._evaluate, plain),
            headline=self.task.headline if self.masked else plain.headline,
            metrics=self._speed,
            save=functools.partial(_save, plain),
            published=_published,
            rows=f"{counted(len(rows), 'row')} of {rows.length} tokens",
        )

    def _make(self, plain: Prepared) -> nn.Module:
        model = plain.make()
        starts = (getattr(teacher.inner, "head", None) for teacher in self.online.values())
        start = next((head for head in starts if head is not None), None)
        return WithVocabulary(model, vocabulary_head(model, start) if self.masked else None)

    def _feed(self, losses: LossSum) -> Feed:
        rows = self.rows
        online = {name: (source, losses.outputs_of(name)) for name, source in self.online.items()}
        if not self.masked:
            units = np.ones(len(rows), dtype=np.int64)
            return Feed(rows, self._whole, units, online=online, device=self.device)
        masked = MaskedRows(rows, self.task.masker, self.world, separate=False)
        collate = functools.partial(self._masked, masked)
        return Feed(rows, collate, masked.units, online=online, device=self.device, draw=masked.begin_step)

    def _whole(self, index: np.ndarray) -> Batch:
        """The rows at positions `index` [B], without masks."""
        tokens = torch.from_numpy(self.rows.take(index)[0].astype(np.int64))
        ones = torch.ones(len(index), dtype=torch.int64)
        return Batch(index, index, {"input_ids": tokens}, {}, ones.bool(), ones)

    def _masked(self, rows: MaskedRows, index: np.ndarray) -> Batch:
        """The rows at positions `index` [B], masked for the current step."""
        found = rows.batch(index)
        targets = {"masked_labels": found.labels, "masked_rows": found.places // self.rows.length}
        units = torch.from_numpy(rows.units[index])
        return Batch(index, index, found.inputs, targets, torch.ones(len(index), dtype=torch.bool), units)

    def _evaluate(self, plain: Prepared, model: nn.Module, precision: str) -> dict[str, float]:
        """Score on held-out text; without masks on the task's validation rows, for which it may not be trained yet."""
        if not self.masked:
            return plain.evaluate(model.model, precision)  # type: ignore[arg-type]
        return self.task.scores(_Scores(model), self.held_out, self.world, precision=precision)

    def _speed(self, position: Position) -> dict[str, Any]:
        per_second = position.rows / position.seconds
        return {
            "seconds_per_epoch": round(len(self.rows) / per_second, 3),
            "rows_per_second": round(per_second, 2),
            "max_length": self.rows.length,
            **({"split": "held_out"} if self.masked else {}),
        }


class _Scores(nn.Module):
    """Wraps a model so that the task of masked language modelling can call it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, places: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids=input_ids, places=places).vocabulary
        return found


def ask(model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]:
    """Call the model once for rows of plain text, and name what the losses need; as `Task.ask`."""
    with taking(model, {name for name in needs if layer_of(name)}) as taken:
        output = model(**batch.inputs)
    found = {"vocabulary": output.vocabulary} if "vocabulary" in needs else {}
    if "token_mask" in needs:
        found["token_mask"] = torch.ones_like(batch.inputs["input_ids"], dtype=torch.bool)
    return found | taken()


def vocabulary_of(student: Student, plan: Plan) -> int:
    """How many tokens a student's vocabulary has."""
    return len(_tokenizer(student, plan))


def _tokenizer(student: Student, plan: Plan) -> PreTrainedTokenizerFast:
    """The tokenizer that reads the rows of a student's task."""
    (own, *_) = plan.of(student)
    return load_tokenizer(own.folder.data / "tokenizers" / tokenizer_name(student))


def _student(plan: Plan, name: str) -> Student:
    return next(student for student in plan.recipe.students if student.name == name)


def _save(plain: Prepared, model: nn.Module, folder: Path, metrics: dict[str, Any]) -> None:
    """Save the student without the head."""
    plain.save(model.model, folder, metrics)  # type: ignore[arg-type]


def _published(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of the student, without those of the head."""
    return {name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")}
