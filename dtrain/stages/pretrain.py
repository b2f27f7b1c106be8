"""pretrain: a masked language model from plain text, all ranks together, phase after phase."""

from __future__ import annotations

import functools
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtrain.data.vocabularies import load_tokenizer
from dtrain.engines.choose import check_sharding
from dtrain.engines.optim import scaled_to_batch
from dtrain.engines.precision import resolve_precision
from dtrain.errors import InputError, counted
from dtrain.losses.objective import LossSum
from dtrain.models import save_model
from dtrain.models.folder import in_own_memory
from dtrain.models.masked_lm import MaskedLM, PairedLM
from dtrain.models.transformer import build_masked_lm
from dtrain.plan import Plan
from dtrain.pretraining.prepare import PARTS, corpus_tokenizer, prepare_corpus, rows_folder
from dtrain.recipe import Recipe
from dtrain.recipe.pretraining import Pretrain
from dtrain.runfolder import RunFolder, publish_folder
from dtrain.runtime.distributed import World
from dtrain.runtime.stop import StopRequest
from dtrain.tasks.masked_lm.masking import Masker
from dtrain.tasks.masked_lm.packing import PackedRows
from dtrain.tasks.masked_lm.pairs import PairedRows
from dtrain.tasks.masked_lm.rows import MaskedRows, Rows
from dtrain.tasks.masked_lm.task import MaskedLanguageModel, MaskedLosses
from dtrain.training.feed import Feed
from dtrain.training.job import Position
from dtrain.training.model_job import ModelJob, Prepared
from dtrain.training.phases import train_phases

KIND = "pretrain"  # the name of its folder in the run, under checkpoints/ and under tensorboard/


def check(recipe: Recipe, world: World) -> None:
    """Check precision, optimizer and sharding of each phase against the device and the launch.

    Raises:
        InputError: naming the key, before anything is written.
    """
    spec = recipe.pretrain
    assert spec is not None
    precision = resolve_precision(spec.precision, world.device, "pretrain.precision")
    for number in range(len(spec.phases)):
        try:
            scaled_to_batch(spec.training(number))
        except InputError as error:
            raise InputError([f"pretrain.phases.{number}.{problem}" for problem in error.problems]) from None
        check_sharding(world, spec.training(number), precision)


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Write `data/corpus/`, then `pretrain/phase-N/` for each phase that is not there yet."""
    spec = recipe.pretrain
    assert spec is not None
    plan = Plan(recipe)
    stop = world.stop or StopRequest(world, folder.root)
    world.run_on_main(lambda: prepare_corpus(recipe, folder, plan.corpus, stop))
    phases = range(len(spec.phases))
    jobs = [Phase(spec, number, world, folder).job(plan.pretraining(number)) for number in phases]
    for trained in train_phases([jobs], world, stop):
        if trained.error is not None:
            raise trained.error
        if world.is_main:
            shutil.rmtree(_latest(folder), ignore_errors=True)


class Phase:
    """One phase of pre-training: its rows and masks, its initial weights, and the folder that it writes."""

    def __init__(self, spec: Pretrain, number: int, world: World, folder: RunFolder) -> None:
        self.spec, self.number, self.world, self.folder = spec, number, world, folder
        self.training = spec.training(number)
        self.title = f"pretrain phase {number + 1}"

    def job(self, identity: str) -> ModelJob:
        """The training job, which starts from the weights at the end of the phase before."""
        return ModelJob(
            title=self.title,
            where=f"pretrain.phases.{self.number}",
            spec=self.training,
            identity=identity,
            prepare=self._prepare,
            final=self.folder.pretrained(self.number),
            checkpoints=self.folder.checkpoints(KIND, self.training.name),
            tensorboard=self.folder.tensorboard(KIND, self.training.name),
        )

    def _prepare(self) -> Prepared:
        spec, seed = self.spec, self.training.seed
        assert seed is not None
        tokenizer = load_tokenizer(corpus_tokenizer(self.folder))
        special = set(tokenizer.all_special_ids)
        ordinary = np.array([token for token in range(len(tokenizer)) if token not in special])
        packed = rows_folder(self.folder, spec, spec.phases[self.number].max_length)
        rows, held_out = (_rows(packed / part, spec.next_sentence, seed, tokenizer) for part in PARTS)
        masker = Masker(spec.masking, seed, tokenizer.mask_token_id, ordinary)
        masked = MaskedRows(rows, masker, self.world, separate=spec.corpus.separate)
        task = MaskedLanguageModel(masker, separate=spec.corpus.separate)

        def feed(losses: LossSum) -> Feed:
            collate = functools.partial(task.collate, masked)
            return Feed(rows, collate, masked.units, device=self.world.device, draw=masked.begin_step)

        def evaluate(model: torch.nn.Module, precision: str) -> dict[str, float]:
            scores = task.scores(model, held_out, self.world, precision=precision)
            if self.world.is_main:
                # A copy to look at, or to fine-tune, while pre-training goes on.
                with publish_folder(_latest(self.folder)) as latest:
                    self._save(model, latest, f"# {self.title}, under way\n\n{task.headline(scores)}\n")
            return scores

        def metrics(position: Position) -> dict[str, Any]:
            tokens_a_second = round(position.rows * rows.length / position.seconds, 1)
            return {"split": "held_out", "max_length": rows.length, "tokens_per_second": tokens_a_second}

        return Prepared(
            make=functools.partial(self._model, len(tokenizer), tokenizer.pad_token_id),
            losses=lambda model: MaskedLosses(),
            outputs=task.outputs,
            feed=feed,
            evaluate=evaluate,
            headline=task.headline,
            metrics=metrics,
            save=lambda model, folder, found: self._save(model, folder, self._card(found, task.headline(found))),
            rows=f"{counted(len(rows), 'row')} of {rows.length} tokens",
            took=lambda found: f"{found['seconds']:.0f} s",
        )

    def _model(self, vocabulary: int, pad_id: int) -> torch.nn.Module:
        start, spec = self.spec.model, self.spec
        if self.number:
            before = {
                "type": start.type,
                "pretrained": str(self.folder.pretrained(self.number - 1)),
                "dropout": start.dropout,
            }
            start = type(start).model_validate(before)
        model = build_masked_lm(
            start,
            vocabulary=vocabulary,
            pad_id=pad_id,
            max_length=max(phase.max_length for phase in spec.phases),
            next_sentence=spec.next_sentence,
        )
        return (PairedLM if spec.next_sentence else MaskedLM)(in_own_memory(model))  # type: ignore[arg-type]

    def _save(self, model: Any, folder: Path, card: str) -> None:
        model.lm.tie_weights()  # gathering shards gives each weight separately, tied ones too
        save_model(model.lm, folder, corpus_tokenizer(self.folder), card)

    def _card(self, metrics: dict[str, Any], headline: str) -> str:
        spec, training = self.spec, self.training
        return (
            f"---\nlibrary_name: transformers\npipeline_tag: fill-mask\n---\n# {training.name}\n\n"
            f"A {spec.model.type} pre-trained by dtrain on {metrics['training_rows']:,} rows of "
            f"{metrics['max_length']} tokens ({time.strftime('%Y-%m-%d')}), whole words masked"
            f"{', next sentences predicted' * spec.next_sentence}.\n\n"
            f"- masked: {spec.masking.share:.0%} of the tokens, n-grams of up to {spec.masking.ngram} words\n"
            f"- parameters: {metrics['parameters']:,}\n"
            f"- optimizer: {training.optimizer.type}, rate {training.optimizer.lr:g}, batches of "
            f"{training.batch_size}, {counted(training.epochs, 'epoch')}, seed {training.seed}\n"
            f"- held-out text: {headline}\n\n"
            "A teacher of the same recipe starts from it with `pretrained: pretrain`, any other with this folder's "
            "path.\n"
        )


def _rows(folder: Path, pairs: bool, seed: int, tokenizer: Any) -> Rows:
    if pairs:
        return PairedRows.open(folder, seed, tokenizer.cls_token_id, tokenizer.sep_token_id)
    return PackedRows.open(folder)


def _latest(folder: RunFolder) -> Path:
    return folder.root / KIND / "latest"
