"""pretrain: a masked language model from plain text, all ranks together, phase after phase."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtrain.data.tokenizers import load_tokenizer
from dtrain.distributed import World
from dtrain.errors import InputError
from dtrain.log import say, say_anywhere
from dtrain.models import parameter_count, save_model
from dtrain.plan import Plan
from dtrain.pretraining.masking import Masker
from dtrain.pretraining.packing import PackedRows
from dtrain.pretraining.pairs import PairedRows
from dtrain.pretraining.prepare import PARTS, corpus_tokenizer, prepare_corpus, rows_folder
from dtrain.pretraining.task import MaskedRows, Rows, evaluate
from dtrain.recipe import Recipe
from dtrain.recipe.pretraining import Pretrain
from dtrain.recipe.training import TrainSpec
from dtrain.runfolder import RunFolder, is_done, mark_done, publish_folder, write_json
from dtrain.training.checkpoint import remove_checkpoints
from dtrain.training.engine import build_engine, build_model
from dtrain.training.loop import Fit, Position, fit
from dtrain.training.optim import scaled_to_batch
from dtrain.training.precision import resolve_precision
from dtrain.training.stop import StopRequest

KIND = "pretrain"  # its folder, also among checkpoints and in TensorBoard


def check(recipe: Recipe, world: World) -> None:
    """Refuse, before anything is written, phases that the launch and the recipe say different things of.

    Raises:
        InputError: naming the key.
    """
    spec = recipe.pretrain
    assert spec is not None
    precision = resolve_precision(spec.precision, world.device, "pretrain.precision")
    for number in range(len(spec.phases)):
        try:
            scaled_to_batch(spec.training(number))
        except InputError as error:
            raise InputError([f"pretrain.phases.{number}.{problem}" for problem in error.problems]) from None
        if world.sharding.kind == "zero" and world.size > 1:
            from dtrain.training.engine_zero import fill_config

            fill_config(world.sharding, spec.training(number), world.size, precision)


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Write `data/corpus/`, then `pretrain/phase-N/` for each phase that is not there yet."""
    spec = recipe.pretrain
    assert spec is not None
    plan = Plan(recipe)
    stop = world.stop or StopRequest(world, folder.root)
    world.main_first(lambda: prepare_corpus(recipe, folder, plan.corpus, stop))
    for number in range(len(spec.phases)):
        identity = plan.pretraining(number)
        if world.main_first(functools.partial(is_done, folder.pretrained(number), identity)):
            say(f"pretrain phase {number + 1}: complete, nothing to do")
            if world.is_main:  # of a run that was killed just before it did so
                remove_checkpoints(folder.checkpoints(KIND, spec.training(number).name))
            continue
        train_phase(spec, number, identity, world, folder, stop)
    if world.is_main:
        shutil.rmtree(_latest(folder), ignore_errors=True)


def train_phase(
    spec: Pretrain, number: int, identity: str, world: World, folder: RunFolder, stop: StopRequest
) -> dict[str, Any]:
    """Train one phase from where the last one ended, and publish its model; returns its metrics.

    Raises:
        Stopped: asked to stop, after a checkpoint.
        Diverged: the loss is not finite.
    """
    training, title = spec.training(number), f"pretrain phase {number + 1}"
    tokenizer = load_tokenizer(corpus_tokenizer(folder))
    special = set(tokenizer.all_special_ids)
    ordinary = np.array([token for token in range(len(tokenizer)) if token not in special])
    assert training.seed is not None
    packed = rows_folder(folder, spec, spec.phases[number].max_length)
    rows, held_out = (_rows(packed / part, spec.next_sentence, training.seed, tokenizer) for part in PARTS)
    masker = Masker(spec.masking, training.seed, tokenizer.mask_token_id, ordinary)
    masked = MaskedRows(rows, masker, world, separate=spec.corpus.separate)
    precision = resolve_precision(spec.precision, world.device, "pretrain.precision")

    torch.manual_seed(training.seed)

    def make() -> torch.nn.Module:
        return _model(spec, number, folder, len(tokenizer), tokenizer.pad_token_id)

    model = build_model(world, make, together=True)
    parameters = parameter_count(model)
    try:
        engine = build_engine(world, model, training, together=True, precision=precision)
    except InputError as error:
        raise InputError([f"pretrain.phases.{number}.{problem}" for problem in error.problems]) from None

    def score(model: torch.nn.Module) -> dict[str, float]:
        scores = evaluate(model, held_out, masker, world, precision=precision, separate=spec.corpus.separate)
        if engine.rank == 0:
            # For a look at it, or a fine-tuning, while pre-training goes on.
            with publish_folder(_latest(folder)) as aside:
                _save(model, aside, folder, f"# {title}, under way\n\n{_headline(scores)}\n")
        return scores

    job = Fit(
        title=title,
        spec=training,
        engine=engine,
        rows=rows,
        units=masked.units,
        loss=lambda model, index, _progress: masked.loss(model, index, world.device),
        evaluate=score,
        checkpoints=folder.checkpoints(KIND, training.name),
        tensorboard=folder.tensorboard(KIND, training.name),
        identity=identity,
        stop=stop,
        headline=_headline,
        begin_step=masked.begin_step,
    )
    say(
        f"{title}: {spec.model.type}, {parameters:,} parameters, {len(rows):,} rows of {rows.length} tokens, "
        f"{precision}, {engine.ranks} rank{'s' if engine.ranks > 1 else ''}"
    )
    best, position, monitor = fit(job)
    metrics = _metrics(position, parameters, len(rows), rows.length)
    if engine.rank == 0:
        _publish(engine.with_weights(best), training, spec, metrics, position, identity, folder, number)
        shutil.rmtree(_latest(folder), ignore_errors=True)
    monitor.close()
    world.wait_for_all("published")
    engine.close()
    if engine.rank == 0:
        remove_checkpoints(job.checkpoints)
    return metrics


def _rows(folder: Path, pairs: bool, seed: int, tokenizer: Any) -> Rows:
    if pairs:
        return PairedRows.open(folder, seed, tokenizer.cls_token_id, tokenizer.sep_token_id)
    return PackedRows.open(folder)


def _model(spec: Pretrain, number: int, folder: RunFolder, vocabulary: int, pad_id: int) -> torch.nn.Module:
    from dtrain.models.folder import in_own_memory
    from dtrain.models.transformer import build_masked_lm
    from dtrain.pretraining.model import MaskedLM, PairedLM

    start = spec.model
    if number:
        before = {"type": start.type, "pretrained": str(folder.pretrained(number - 1)), "dropout": start.dropout}
        start = type(spec.model).model_validate(before)
    longest = max(phase.max_length for phase in spec.phases)
    pairs = spec.next_sentence
    model = build_masked_lm(start, vocabulary=vocabulary, pad_id=pad_id, max_length=longest, next_sentence=pairs)
    return (PairedLM if pairs else MaskedLM)(in_own_memory(model))  # type: ignore[arg-type]


def _latest(folder: RunFolder) -> Path:
    return folder.root / KIND / "latest"


def _save(model: Any, aside: Path, folder: RunFolder, card: str) -> None:
    model.lm.tie_weights()  # weights that were gathered from shards come one by one
    save_model(model.lm, aside, corpus_tokenizer(folder), card)


def _headline(scores: Mapping[str, float]) -> str:
    told = f"accuracy {scores['accuracy']:.4f}, perplexity {scores['perplexity']:.2f}"
    if "next_sentence_accuracy" in scores:
        told += f", next sentence {scores['next_sentence_accuracy']:.4f} (loss {scores['next_sentence_loss']:.4f})"
    return told


def _metrics(position: Position, parameters: int, rows: int, length: int) -> dict[str, Any]:
    best = next(h for h in position.history if h["split"] == "valid" and h["step"] == position.best_step)
    seconds = position.seconds
    return {
        **{name: value for name, value in best.items() if name not in ("step", "epoch", "split")},
        "split": "held_out",
        "parameters": parameters,
        "best_epoch": position.best_epoch,
        "best_step": position.best_step,
        "steps": position.step,
        "training_rows": rows,
        "max_length": length,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(position.rows * length / seconds, 1),
    }


def _publish(
    model: torch.nn.Module,
    training: TrainSpec,
    spec: Pretrain,
    metrics: dict[str, Any],
    position: Position,
    identity: str,
    folder: RunFolder,
    number: int,
) -> None:
    card = (
        f"---\nlibrary_name: transformers\npipeline_tag: fill-mask\n---\n# {training.name}\n\n"
        f"A {spec.model.type} pre-trained by dtrain on {metrics['training_rows']:,} rows of {metrics['max_length']} "
        f"tokens ({time.strftime('%Y-%m-%d')}), whole words masked{', next sentences predicted' * spec.next_sentence}.\n\n"
        f"- masked: {spec.masking.share:.0%} of the tokens, n-grams of up to {spec.masking.ngram} words\n"
        f"- parameters: {metrics['parameters']:,}\n"
        f"- optimizer: {training.optimizer.type}, rate {training.optimizer.lr:g}, batches of {training.batch_size}, "
        f"{training.epochs} epochs, seed {training.seed}\n"
        f"- held-out text: {_headline(metrics)}\n\n"
        "A teacher of the same recipe starts from it with `pretrained: pretrain`, any other with this folder's path.\n"
    )
    final = folder.pretrained(number)
    with publish_folder(final) as aside:
        _save(model, aside, folder, card)
        metrics["bytes"] = (aside / "model.safetensors").stat().st_size
        write_json(aside / "metrics.json", metrics)
        write_json(aside / "history.json", position.history)
        mark_done(aside, identity)
    say_anywhere(f"pretrain phase {number + 1}: {_headline(metrics)}; {metrics['seconds']:.0f} s -> {final}")
