"""Synthetic rows and teachers, and ranks that are threads of this process."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dtrain.data import EncodedSplit
from dtrain.errors import DtrainError
from dtrain.knowledge.format import Identity, Layout, new_layout
from dtrain.knowledge.writer import StoreWriter
from dtrain.models import ClassifierOutput
from dtrain.models.decoding import Written
from dtrain.runfolder import file_fingerprint
from dtrain.runtime.distributed import World
from dtrain.stages.filling import fill

VOCABULARY = 60
CLASSES = 5
FEATURES = 48

# All layouts of stored outputs, as settings of a Job.
KINDS: dict[str, dict[str, Any]] = {
    "logits": {},
    "top-k and features": {"outputs": ("features", "logits"), "top_k": 2},
    "tags": {"outputs": ("marginals", "emissions")},
    "written": {"outputs": ("sequences", "token_logits"), "top_k": 1},
}


class MadeUpTeacher(nn.Module):
    """Attention over a few tokens: products whose shapes depend on batch and length, and no padding effect.

    With `tell_shape` its answers also depend on the shape of the batch, by much more than rounding.
    """

    def __init__(self, seed: int = 0, tell_shape: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCABULARY, FEATURES)
            self.encoder = nn.TransformerEncoderLayer(FEATURES, 4, 96, dropout=0.5, batch_first=True)
            self.classifier = nn.Linear(FEATURES, CLASSES)
        self.tell_shape = tell_shape
        self.seen = 0  # rows
        self._lock = threading.Lock()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> ClassifierOutput:
        with self._lock:
            self.seen += len(input_ids)
        states = self.embedding(input_ids)
        states = self.encoder(states, src_key_padding_mask=attention_mask == 0)
        weights = attention_mask[..., None] / attention_mask.sum(1)[:, None, None]
        features = (states * weights).sum(1)
        logits = self.classifier(features)
        if self.tell_shape:
            logits = logits + input_ids.shape[0] + input_ids.shape[1] / 32
        return ClassifierOutput(logits, features)


class TaggerOutput(NamedTuple):
    logits: torch.Tensor
    mask: torch.Tensor
    marginals: torch.Tensor | None = None


class MadeUpTagger(MadeUpTeacher):
    """Tags all tokens except the first and the last, like a model with [CLS] and [SEP]."""

    def forward(  # type: ignore[override]
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, marginals: bool = False
    ) -> TaggerOutput:
        with self._lock:
            self.seen += len(input_ids)
        states = self.encoder(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        emissions = self.classifier(states[:, 1:-1])
        mask = torch.arange(emissions.shape[1]) < attention_mask.sum(1)[:, None] - 2
        emissions = emissions + 100 * ~mask[..., None]  # values at padded positions must not matter
        if self.tell_shape:
            emissions = emissions + input_ids.shape[0] + input_ids.shape[1] / 32
        return TaggerOutput(emissions, mask, emissions.log_softmax(-1) if marginals else None)


class MadeUpWriter(MadeUpTeacher):
    """Scores the tokens of targets, and generates two sequences."""

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
        target_lengths: torch.Tensor,
    ) -> Written:
        pooled = super().forward(input_ids, attention_mask).features
        logits = self.classifier(self.embedding(decoder_input_ids) + pooled[:, None])
        mask = torch.arange(logits.shape[1]) < target_lengths[:, None]
        if self.tell_shape:
            logits = logits + input_ids.shape[0] + input_ids.shape[1] / 32
        scores, tokens = (logits[:, 0] + 0 * pooled[:, :1]).sort(dim=1, descending=True)
        candidates = torch.stack([tokens[:, :3], tokens[:, 2:5]], dim=1)
        return Written(logits, mask, functional.pad(candidates, (0, 1), value=-1), scores[:, :2])


def with_targets(part: EncodedSplit) -> EncodedSplit:
    """The same rows with targets of 0 to 6 tokens; a quarter of them have no target."""
    random = np.random.default_rng(1)
    lengths = random.integers(1, 7, len(part)) * (random.random(len(part)) < 0.75)
    tokens = random.integers(1, CLASSES, lengths.sum()).astype(np.int32)
    return replace(part, targets=tokens, target_offsets=np.cumsum([0, *lengths]), start_id=2)


def made_up_part(rows: int, seed: int = 0, gap_at: int | None = None, tagging: bool = False) -> EncodedSplit:
    """Rows of 1 to 20 tokens (for taggers 3 to 22, of which 2 are no characters). A quarter of them repeat another row;
    ids jump by 1000 at `gap_at`.
    """
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 21, rows) + 2 * tagging
    texts = [random.integers(1, VOCABULARY, length).astype(np.int32) for length in lengths]
    for row in range(1, rows):
        if random.random() < 0.25:
            texts[row] = texts[random.integers(row)]
    ids = np.arange(rows, dtype=np.int64)
    if gap_at is not None:
        ids[gap_at:] += 1000

    def no_rows() -> Any:
        raise AssertionError("the text itself is not needed")

    return EncodedSplit(
        ids=ids,
        labels=np.full(rows, -1, dtype=np.int64),
        tokens=np.concatenate(texts),
        types=None,
        offsets=np.cumsum([0, *map(len, texts)]),
        pad_id=0,
        load_rows=no_rows,
        specials=2 if tagging else 0,
    )


class _Shared:
    """What the ranks of one world share."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=600)  # seconds; a rank that does not come fails the test
        self.counters: dict[str, itertools.count[int]] = {}
        self.lock = threading.Lock()
        self.slots: list[Any] = [None] * size


class ThreadWorld:
    """A rank that is a thread, with the part of the interface of `dtrain.runtime.distributed.World` that the store
    needs.
    """

    device = torch.device("cpu")

    def __init__(self, rank: int, shared: _Shared, threads: int) -> None:
        self.rank, self.size, self.threads = rank, len(shared.slots), threads
        self._shared = shared

    def asked_to_stop(self) -> bool:
        return False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def counter(self, name: str) -> Callable[[], int]:
        def take() -> int:
            with self._shared.lock:
                return next(self._shared.counters.setdefault(name, itertools.count()))

        return take

    def gather_objects(self, value: Any) -> list[Any]:
        self._shared.slots[self.rank] = value
        self._shared.barrier.wait()
        values = list(self._shared.slots)
        self._shared.barrier.wait()
        return values

    together = World.together

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.gather_objects(tensor)).sum(0)

    def run_on_main(self, work: Callable[[], Any]) -> Any:
        outcome: Any = None
        if self.is_main:
            try:
                outcome = work()
                json.dumps(outcome)  # must be serialisable, as in the real world
            except Exception as error:
                outcome = error
        outcome = self.gather_objects(outcome)[0]
        if isinstance(outcome, Exception):
            raise outcome if self.is_main else DtrainError([])
        return outcome

    def wait_for_all(self, name: str) -> None:
        self._shared.barrier.wait()


def run_ranks(ranks: int, work: Callable[[Any], None], threads: int = 1) -> list[Exception | None]:
    """Run `work(world)` on every rank of a new world; each rank's error, if any."""
    shared = _Shared(ranks)

    def one(rank: int) -> Exception | None:
        try:
            work(ThreadWorld(rank, shared, threads))
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(one, range(ranks)))


@dataclass
class Job:
    """A store to be made, with its rows, teacher and settings."""

    rows: int = 300
    seed: int = 0  # of the teacher
    tell_shape: bool = False
    shard_rows: int = 40
    batch_tokens: int = 200
    dtype: str = "float16"
    precision: str = "fp32"
    gap_at: int | None = 250
    outputs: tuple[str, ...] = ("logits",)
    top_k: int | None = None
    part: EncodedSplit = field(init=False)
    teacher: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.part = made_up_part(self.rows, gap_at=self.gap_at, tagging=self.tagging)
        kind = MadeUpTagger if self.tagging else MadeUpTeacher
        if "sequences" in self.outputs:
            self.part, kind = with_targets(self.part), MadeUpWriter
        # Shared by the threads of all ranks, none of which may change its mode.
        self.teacher = kind(self.seed, self.tell_shape).eval()

    @property
    def tagging(self) -> bool:
        return bool({"emissions", "marginals"} & set(self.outputs))

    @property
    def layout(self) -> Layout:
        identity = Identity(teacher=f"{self.seed:032x}", tokenizer="b" * 32, data="c" * 32)
        return new_layout(
            identity,
            rows=self.rows,
            widths={name: {"features": FEATURES, "sequences": (2, 4)}.get(name, CLASSES) for name in self.outputs},
            dtype=self.dtype,
            precision=self.precision,
            batch_tokens=self.batch_tokens,
            shard_rows=self.shard_rows,
            top_k=self.top_k,
            characters=self.part.vectors,
            decoding="made up" if "sequences" in self.outputs else None,
        )

    def fill(self, path: Path, world: Any) -> None:
        fill(StoreWriter(path, self.layout, self.part.ids), self.teacher, self.part, world, title="made-up")

    def make(self, path: Path, ranks: int = 1, threads: int = 1) -> Path:
        """Fill the store with this many ranks; raises the main rank's error."""
        errors = run_ranks(ranks, lambda world: self.fill(path, world), threads)
        assert len({type(error) for error in errors}) == 1, errors
        if errors[0]:
            raise errors[0]
        return path


def hashes(store: Path) -> dict[str, str]:
    return {path.name: file_fingerprint(path) for path in sorted(store.iterdir())}


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


@pytest.fixture(scope="session")
def kinds() -> dict[str, dict[str, Any]]:
    return KINDS


@pytest.fixture(scope="session")
def job() -> type[Job]:
    return Job


@pytest.fixture(scope="session")
def hashes_of() -> Callable[[Path], dict[str, str]]:
    return hashes


@pytest.fixture(scope="session")
def on_ranks() -> Callable[..., list[Exception | None]]:
    return run_ranks
