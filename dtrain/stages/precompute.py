"""precompute: every teacher's outputs for training and transfer rows, once, into the knowledge store.

    shards, from a counter shared by all ranks -> distinct texts -> batches -> teacher -> shard files -> manifest

What a shard holds is a function of the shard alone, so its bytes are the same whichever rank computes it, and
a restart computes what is missing.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from dtrain.data import Part, PreparedData, inference_batches, tokenizer_name
from dtrain.distributed import World
from dtrain.errors import DtrainError, Stopped
from dtrain.knowledge import Identity, StoreWriter, new_layout, verify
from dtrain.knowledge.collect import collector, model_options, pick
from dtrain.log import say
from dtrain.models import load, weights_fingerprint
from dtrain.models.unpadded import unpadded
from dtrain.plan import Plan
from dtrain.recipe import Recipe
from dtrain.runfolder import RunFolder, fingerprint, is_done, mark_done, read_json
from dtrain.training.engine import resolve_precision
from dtrain.training.inference import cast_products, forward_outputs, in_order, in_threads

# What transformers writes into a config without a meaning for the outputs.
_NO_EFFECT = {"_name_or_path", "transformers_version"}


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Read `data/` and `teachers/`, write `knowledge/<teacher>/` for each teacher that a student learns from.

    Raises:
        DtrainError: NaN or infinity in a teacher's outputs, with the row ids; whole shards stay.
    """
    plan = Plan(recipe)
    data = PreparedData.open(folder)
    for name in plan.needed_teachers():
        if is_done(folder.knowledge(name), plan.knowledge(name)):
            say(f"knowledge of {name}: complete, nothing to do")
            continue
        _precompute(name, recipe, data, world, folder)
        if world.is_main:
            mark_done(folder.knowledge(name), plan.knowledge(name))
        world.wait_for_all(f"knowledge of {name}")


def expected_identity(teacher: str, recipe: Recipe, data: PreparedData, folder: RunFolder) -> Identity:
    """What a store of this teacher's outputs must have been made from, by the files that are there now."""
    model = folder.model("teachers", teacher)
    config = {key: value for key, value in read_json(model / "config.json").items() if key not in _NO_EFFECT}
    return Identity(
        teacher=fingerprint("teacher", weights_fingerprint(load_file(model / "model.safetensors")), config),
        tokenizer=data.tokenizer_fingerprint(_tokenizer_of(teacher, recipe)),
        data=data.fingerprint,
    )


def check_store(teacher: str, recipe: Recipe, folder: RunFolder) -> None:
    """Raise StoreError unless the teacher's store is whole, made from what is there now, and of its very rows."""
    data = PreparedData.open(folder)
    ids = _rows(teacher, recipe, data).ids
    verify(folder.knowledge(teacher), expected_identity(teacher, recipe, data, folder), ids)


def _precompute(name: str, recipe: Recipe, data: PreparedData, world: World, folder: RunFolder) -> None:
    part = _rows(name, recipe, data)
    settings = recipe.knowledge
    precision = resolve_precision(settings.precision, world.device, "knowledge.precision")
    teacher = cast_products(load(folder.model("teachers", name)), precision, world.device)
    assert settings.outputs is not None
    layout = new_layout(
        expected_identity(name, recipe, data, folder),
        rows=len(part),
        widths=_widths(teacher, part, settings.outputs, precision, world),
        dtype=settings.dtype,
        precision=precision,
        compiled=settings.compile,
        unpadded=settings.unpadded,
        batch_tokens=settings.batch_tokens,
        shard_rows=settings.shard_rows,
        top_k=settings.top_k,
        characters=part.characters,
    )
    store = StoreWriter(folder.knowledge(name), layout, part.ids)
    fill(store, teacher, part, world, title=f"knowledge of {name}")


def _widths(teacher: nn.Module, part: Part, outputs: Sequence[str], precision: str, world: World) -> dict[str, int]:
    """C, T or H of each output, by the first row's answer.

    Raises:
        InputError: the teacher has no such output.
    """
    answers = forward_outputs(
        teacher,
        part,
        [np.arange(1)],
        outputs=lambda output: tuple(pick(name, output) for name in outputs),
        options=model_options(teacher, outputs),
        device=world.device,
        precision=precision,
        threads=1,
    )
    return {name: values.shape[-1] for name, values in zip(outputs, next(answers), strict=True)}


def _rows(teacher: str, recipe: Recipe, data: PreparedData) -> Part:
    """Training and transfer rows, ordered by id."""
    tokenizer = _tokenizer_of(teacher, recipe)
    parts = [data.part(name, tokenizer) for name in ("train", "transfer") if name in data.parts]
    return parts[0] if len(parts) == 1 else Part.concat(parts)


def _tokenizer_of(teacher: str, recipe: Recipe) -> str:
    return tokenizer_name(next(member for member in recipe.teachers if member.name == teacher))


# --- the work of all ranks on one store ------------------------------------------------------------


def fill(store: StoreWriter, teacher: nn.Module, part: Part, world: World, *, title: str) -> None:
    """Compute the shards that are missing, together with the other ranks, and publish the store.

    Args:
        part: the store's rows, in its order.

    Raises:
        DtrainError: on every rank, when a shard failed on any; the main rank's names the problems.
        Stopped: asked to stop.
    """
    layout = store.layout
    kept = world.main_first(store.prepare)
    if kept:
        say(f"{title}: {kept} of {layout.shard_count} shards are there already")
    begin = time.perf_counter()
    count = world.counter(f"{title}, {layout.fingerprint}")

    def take() -> int:
        """The next shard's number; past the last one when asked to stop."""
        return layout.shard_count if world.asked_to_stop() else count()

    work = _Work(teacher, part, store, world)
    problems: list[str] = []
    try:
        shards = work.answered(_missing(store, take), title)
        # Writing and flushing happen beside the next shard's batches.
        for _ in in_threads(work.write, shards, threads=1):
            pass
    except (DtrainError, OSError) as error:
        problems = error.problems if isinstance(error, DtrainError) else [f"{store.path}: {error}"]
        while count() < layout.shard_count:  # leaves nothing to the other ranks, so that all end soon
            pass
    world.wait_for_all(title)
    problems = [problem for found in world.gather_objects(problems) for problem in found]
    if problems:
        raise DtrainError(problems if world.is_main else [])
    if any(world.gather_objects(world.asked_to_stop())):
        raise Stopped(f"{title}: stopped on request; whole shards are kept, and the same command continues")
    world.main_first(lambda: _publish(store))
    say(f"{title}: {work.summary(time.perf_counter() - begin)} -> {store.path}")


def _missing(store: StoreWriter, take: Callable[[], int]) -> Iterator[int]:
    """Numbers of shards for this rank to compute."""
    while (number := take()) < store.layout.shard_count:
        if not store.has(number):
            yield number


def _publish(store: StoreWriter) -> None:
    store.publish()


@dataclass
class _Shard:
    """A shard under way: the answers to its distinct texts as they come in."""

    number: int
    rows: range
    texts: np.ndarray  # rows of the part, one for each distinct text
    inverse: np.ndarray  # [rows] -> distinct text
    batches: list[np.ndarray]  # of distinct texts
    answers: list[tuple[Tensor, ...]] = field(default_factory=list)

    def by_row(self, place: int) -> Tensor:
        """[rows, ...] on the device, in id order: the answers' tensor at `place`."""
        answers = in_order(self.batches, [answer[place] for answer in self.answers])
        return answers[torch.from_numpy(self.inverse).to(answers.device)]

    def by_character(self, place: int, lengths: np.ndarray) -> Tensor:
        """[characters of all rows, T], in id order, from answers [B, N, T]; `lengths` [rows] are in characters."""
        padded = [answer[place] for answer in self.answers]
        start = np.empty(len(self.texts), dtype=np.int64)  # a text's first character among all padded ones
        base = 0
        for batch, answer in zip(self.batches, padded, strict=True):
            start[batch] = base + np.arange(len(batch)) * answer.shape[1]
            base += answer.shape[0] * answer.shape[1]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        wanted = torch.from_numpy(np.repeat(start[self.inverse], lengths) + within)
        flat = torch.cat([answer.flatten(0, 1) for answer in padded])
        return flat[wanted.to(flat.device)]


class _Work:
    """This rank's part of the work, and what it amounted to."""

    def __init__(self, teacher: nn.Module, part: Part, store: StoreWriter, world: World) -> None:
        self.layout = layout = store.layout
        self.options = model_options(teacher, layout.outputs)
        if layout.unpadded:
            teacher, self.options = unpadded(teacher), {}
        # Lengths differ from batch to batch: one program for all.
        self.teacher: Any = torch.compile(teacher, dynamic=True) if layout.compiled else teacher
        self.part = part
        self.store = store
        self.world = world
        self.rows = self.texts = self.tokens = self.padded = 0

    def answered(self, numbers: Iterator[int], title: str) -> Iterator[_Shard]:
        """The shards `numbers` with all their answers. Batches of the next shard follow without a pause."""
        under_way: deque[_Shard] = deque()
        quiet = not (self.world.is_main and sys.stderr.isatty())
        with tqdm(total=self.layout.rows, desc=title, unit="row", disable=quiet, leave=False) as bar:

            def batches() -> Iterator[np.ndarray]:
                for number in numbers:
                    shard = self._begin(number)
                    under_way.append(shard)
                    bar.update(shard.rows.start - bar.n)  # shards go out in order, so this is all ranks' progress
                    yield from (shard.texts[batch] for batch in shard.batches)

            for answer in forward_outputs(
                self.teacher,
                self.part,
                batches(),
                outputs=collector(self.layout),
                options=self.options,
                device=self.world.device,
                precision=self.layout.precision,
                threads=self.world.threads,
            ):
                bar.update(len(answer[0]))
                shard = under_way[0]
                shard.answers.append(answer)
                if len(shard.answers) == len(shard.batches):
                    yield under_way.popleft()

    def write(self, shard: _Shard) -> None:
        """Bring the answers into the order of the rows and publish the shard.

        Raises:
            DtrainError: NaN or infinity, or a tagger that saw another number of characters than a row has.
        """
        lengths = self._characters(shard) if self.layout.ragged else None
        columns = {
            column.name: shard.by_character(place, lengths)
            if column.ragged and lengths is not None
            else shard.by_row(place)
            for place, column in enumerate(self.layout.columns)
        }
        self.store.write(shard.number, columns, lengths)

    def summary(self, seconds: float) -> str:
        """What all ranks did, in words. Every rank must call it."""
        own = torch.tensor([self.rows, self.texts, self.tokens, self.padded])
        rows, texts, tokens, padded = self.world.sum(own).tolist()
        return (
            f"{self.layout.rows:,} rows, {rows:,} of them now in {seconds:.1f} s ({rows / max(seconds, 1e-9):,.0f} rows/s, "
            f"{rows - texts:,} repeat a text of their shard, {1 - tokens / max(padded, 1):.1%} padding, "
            f"{self.layout.precision})"
        )

    def _begin(self, number: int) -> _Shard:
        rows = self.layout.shard_range(number)
        texts, inverse = distinct_texts(self.part, np.arange(rows.start, rows.stop))
        lengths = self.part.lengths[texts]
        shard = _Shard(number, rows, texts, inverse, inference_batches(lengths, self.layout.batch_tokens))
        self.rows += len(rows)
        self.texts += len(texts)
        tokens = int(lengths.sum())
        self.tokens += tokens
        self.padded += (
            tokens if self.layout.unpadded else sum(len(batch) * int(lengths[batch].max()) for batch in shard.batches)
        )
        return shard

    def _characters(self, shard: _Shard) -> np.ndarray:
        """int [rows], compared with what the model counted (the last of its answers' tensors)."""
        lengths = self.part.characters[shard.rows.start : shard.rows.stop].astype(np.int64)
        seen = shard.by_row(-1).cpu().numpy()
        wrong = np.flatnonzero(seen != lengths)
        if len(wrong):
            row = wrong[0]
            raise DtrainError(
                f"{self.store.path}: the teacher tagged {seen[row]} characters of the row with id "
                f"{self.part.ids[shard.rows.start + row]}, which has {lengths[row]}"
            )
        return lengths


def distinct_texts(part: Part, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that the model must see: the first of each encoded text among `rows` [N].

    Returns:
        Those rows [U], in order, and for each of the N its place among them.
    """
    seen: dict[tuple[bytes, bytes], int] = {}
    first = np.empty(len(rows), dtype=np.int64)
    for index, row in enumerate(rows.tolist()):
        span = slice(part.offsets[row], part.offsets[row + 1])
        text = part.tokens[span].tobytes(), b"" if part.types is None else part.types[span].tobytes()
        first[index] = seen.setdefault(text, index)
    distinct, inverse = np.unique(first, return_inverse=True)
    return rows[distinct], inverse
