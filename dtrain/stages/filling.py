"""Fill a knowledge store: all ranks together compute the outputs of one teacher.

    shards, from a counter shared by all ranks -> distinct texts -> batches -> teacher -> shard files -> manifest

The contents of a shard depend on the shard alone, so its bytes are the same whichever rank computes it, and a restart
computes only the missing ones. A teacher that is sharded over the ranks (`knowledge.sharded`) runs every forward pass on
all of them at once. Its store's shards are therefore assigned to ranks in advance, and a rank that has finished its own
still takes part in the passes of the others.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dtrain.data import EncodedSplit, inference_batches
from dtrain.errors import DtrainError, Stopped
from dtrain.knowledge.collect import collector, model_options
from dtrain.knowledge.writer import StoreWriter
from dtrain.log import say
from dtrain.models.unpadded import unpadded
from dtrain.runtime.distributed import World
from dtrain.training.inference import (
    forward_outputs,
    in_order,
    in_threads,
)
from dtrain.training.lockstep import AllStop, LockstepModel


def fill(store: StoreWriter, teacher: nn.Module, part: EncodedSplit, world: World, *, title: str) -> None:
    """Compute the shards that are missing, together with the other ranks, and publish the store.

    Args:
        teacher: the whole model on every rank, or a `LockstepModel`.
        part: the store's rows, in its order.

    Raises:
        DtrainError: on every rank, if a shard failed on any; on the main rank it names the problems.
        Stopped: a stop was requested.
    """
    layout = store.layout
    kept = world.run_on_main(store.prepare)
    if kept:
        say(f"{title}: {kept} of {layout.shard_count} shards are there already")
    begin = time.perf_counter()
    work = _Work(teacher, part, store, world)
    problems = _in_step(work, teacher, title) if isinstance(teacher, LockstepModel) else _on_its_own(work, title)
    world.wait_for_all(title)
    problems = [problem for found in world.gather_objects(problems) for problem in found]
    if problems:
        raise DtrainError(problems if world.is_main else [])
    if any(world.gather_objects(world.asked_to_stop())):
        raise Stopped(f"{title}: stopped on request; whole shards are kept, and the same command continues")
    world.run_on_main(lambda: _publish(store))
    say(f"{title}: {work.summary(time.perf_counter() - begin)} -> {store.path}")


def _on_its_own(work: _Work, title: str) -> list[str]:
    """Compute the shards that the ranks' shared counter gives, until none is left; returns problems."""
    store, world = work.store, work.world
    last = store.layout.shard_count
    count = world.counter(f"{title}, {store.layout.fingerprint}")

    def missing() -> Iterator[_Shard]:
        while not world.asked_to_stop() and (number := count()) < last:
            if not store.has(number):
                yield work.begin(number)

    try:
        # Writing and flushing happen beside the next shard's batches.
        for _ in in_threads(work.write, work.answered(missing(), title), threads=1):
            pass
    except (DtrainError, OSError) as error:
        while count() < last:  # leaves no shard to the other ranks, so that all end soon
            pass
        return _problems(error, store)
    return []


def _in_step(work: _Work, teacher: LockstepModel, title: str) -> list[str]:
    """Compute every `world.size`-th missing shard, in as many passes as the busiest rank needs; returns problems."""
    store, world = work.store, work.world
    missing = world.gather_objects([n for n in range(store.layout.shard_count) if not store.has(n)])[0]
    shards = [work.begin(number) for number in missing[world.rank :: world.size]]
    passes = max(world.gather_objects(sum(len(shard.batches) for shard in shards)))
    problems: list[str] = []

    def write(shard: _Shard) -> None:
        try:
            work.write(shard)
        except (DtrainError, OSError) as error:  # this rank goes on until all agree to stop
            problems.extend(_problems(error, store))

    teacher.wants_to_stop = lambda: bool(problems) or world.asked_to_stop()
    with contextlib.suppress(AllStop):
        for _ in in_threads(write, work.answered(iter(shards), title, passes), threads=1):
            pass
    return problems


def _problems(error: DtrainError | OSError, store: StoreWriter) -> list[str]:
    return error.problems if isinstance(error, DtrainError) else [f"{store.path}: {error}"]


def _publish(store: StoreWriter) -> None:
    """Publish the store and return nothing: a result of the main rank would be sent to all ranks, as JSON."""
    store.publish()


@dataclass
class _Shard:
    """A shard that is being computed, with the answers to its distinct texts so far."""

    number: int
    rows: range
    texts: np.ndarray  # int64 [U], rows of the part, one for each distinct text
    inverse: np.ndarray  # int64 [rows], each row's place in `texts`
    batches: list[np.ndarray]  # places in `texts`
    answers: list[tuple[Tensor, ...]] = field(default_factory=list)

    def by_row(self, place: int) -> Tensor:
        """The answers' tensor at `place`, brought into id order: [rows, ...] on the device."""
        answers = in_order(self.batches, [answer[place] for answer in self.answers])
        return answers[torch.from_numpy(self.inverse).to(answers.device)]

    def by_character(self, place: int, lengths: np.ndarray) -> Tensor:
        """The answers' tensor [B, N, T] at `place`, in id order and without padding: [characters of all rows, T].

        Args:
            lengths: int [rows], the characters of each row.
        """
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
    """This rank's share of the work, and counts of what was done."""

    def __init__(self, teacher: nn.Module, part: EncodedSplit, store: StoreWriter, world: World) -> None:
        self.layout = layout = store.layout
        self.options = model_options(whole_model(teacher), layout.outputs)
        if layout.unpadded:
            teacher, self.options = unpadded(teacher), {}
        # Lengths differ from batch to batch: `dynamic` compiles one program for all.
        self.teacher: Any = torch.compile(teacher, dynamic=True) if layout.compiled else teacher
        self.in_step = isinstance(teacher, LockstepModel)
        self.part = part
        self.store = store
        self.world = world
        self.rows = self.texts = self.tokens = self.padded = 0

    def answered(self, shards: Iterator[_Shard], title: str, passes: int = 0) -> Iterator[_Shard]:
        """Give each shard once it has all its answers. Batches of the next shard follow without a pause.

        Args:
            passes: how many times to run the model at least; passes that no shard needs have one row.
        """
        under_way: deque[_Shard] = deque()
        quiet = not (self.world.is_main and sys.stderr.isatty())
        with tqdm(total=self.layout.rows, desc=title, unit="row", disable=quiet, leave=False) as bar:

            def batches() -> Iterator[np.ndarray]:
                made = 0
                for shard in shards:
                    under_way.append(shard)
                    bar.update(shard.rows.start - bar.n)  # shards are handed out in order: the progress of all ranks
                    yield from (shard.texts[batch] for batch in shard.batches)
                    made += len(shard.batches)
                yield from itertools.repeat(np.arange(1), passes - made)

            for answer in forward_outputs(
                self.teacher,
                self.part,
                batches(),
                outputs=collector(self.layout),
                options=self.options,
                device=self.world.device,
                precision=self.layout.precision,
                threads=1 if self.in_step else self.world.threads,
                split=not self.in_step,
            ):
                if not under_way:
                    continue
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
        """What all ranks did, in words; every rank must call this."""
        own = torch.tensor([self.rows, self.texts, self.tokens, self.padded])
        rows, texts, tokens, padded = self.world.sum(own).tolist()
        return (
            f"{self.layout.rows:,} rows, {rows:,} of them now in {seconds:.1f} s ({rows / max(seconds, 1e-9):,.0f} rows/s, "
            f"{rows - texts:,} repeat a text of their shard, {1 - tokens / max(padded, 1):.1%} padding, "
            f"{self.layout.precision})"
        )

    def begin(self, number: int) -> _Shard:
        """Begin a shard: find its distinct texts, and put them into batches."""
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
        """The characters of each row, int64 [rows]; DtrainError if the model counted others (its last tensor)."""
        lengths = self.part.vectors[shard.rows.start : shard.rows.stop].astype(np.int64)
        seen = shard.by_row(-1).cpu().numpy()
        wrong = np.flatnonzero(seen != lengths)
        if len(wrong):
            row = wrong[0]
            did, parts = ("tagged", "characters") if self.part.targets is None else ("scored", "tokens")
            raise DtrainError(
                f"{self.store.path}: the teacher {did} {seen[row]} {parts} of the row with id "
                f"{self.part.ids[shard.rows.start + row]}, which has {lengths[row]}"
            )
        return lengths


def distinct_texts(part: EncodedSplit, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that the model must read: the first one of each distinct encoded text among `rows` [N].

    Returns:
        Those rows [U], in order; and for each of the N rows the place of its text among them, int [N].
    """
    seen: dict[tuple[bytes, bytes], int] = {}
    first = np.empty(len(rows), dtype=np.int64)
    for index, row in enumerate(rows.tolist()):
        span = slice(part.offsets[row], part.offsets[row + 1])
        text = part.tokens[span].tobytes(), b"" if part.types is None else part.types[span].tobytes()
        if part.targets is not None and part.target_offsets is not None:  # a teacher's logits depend on the target
            text = text[0], part.targets[part.target_offsets[row] : part.target_offsets[row + 1]].tobytes()
        if part.privileged is not None:  # and on the annotations
            own = slice(part.tag_offsets[row], part.tag_offsets[row + 1])
            text = text[0], part.privileged[own].tobytes()
        first[index] = seen.setdefault(text, index)
    distinct, inverse = np.unique(first, return_inverse=True)
    return rows[distinct], inverse


def whole_model(teacher: nn.Module) -> nn.Module:
    """The model itself of a teacher that may be sharded over ranks."""
    return teacher.model if isinstance(teacher, LockstepModel) else teacher
