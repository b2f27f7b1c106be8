"""Filling a store gives the same bytes on any number of ranks and in any number of attempts; failures on one rank."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dtrain
from dtrain.data import inference_batches
from dtrain.errors import DtrainError
from dtrain.knowledge.format import read_manifest, rows_of_shards
from dtrain.knowledge.reader import StoreReader
from dtrain.knowledge.verify import verify
from dtrain.knowledge.writer import StoreWriter
from dtrain.stages.filling import distinct_texts, fill


def naive_output(job, row, **options):
    """The output for a single row without padding, computed in the simplest way."""
    tokens = job.part.tokens[job.part.offsets[row] : job.part.offsets[row + 1]].astype(np.int64)
    ids = torch.from_numpy(tokens)[None]
    with torch.no_grad():
        return job.teacher.eval()(ids, torch.ones_like(ids), **options)


def test_rows_hold_the_teachers_answers(job, tmp_path):
    made = job(dtype="float32", outputs=("logits", "features"))
    made.make(tmp_path / "store")
    reader = StoreReader.open(tmp_path / "store")
    expected = [naive_output(made, row) for row in range(made.rows)]
    logits, features = (torch.cat(tensors) for tensors in zip(*expected, strict=True))
    torch.testing.assert_close(reader.logits(made.part.ids), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reader.read("features", made.part.ids), features, rtol=1e-5, atol=1e-5)


def test_top_k_has_the_teachers_probabilities(job, tmp_path):
    made = job(dtype="float32", outputs=("logits",), top_k=2)
    reader = StoreReader.open(made.make(tmp_path / "store"))
    found = reader.logits(made.part.ids).softmax(1)
    expected = torch.cat([naive_output(made, row).logits for row in range(made.rows)]).softmax(1)
    top = expected.topk(2)
    torch.testing.assert_close(found.gather(1, top.indices), top.values, rtol=1e-5, atol=1e-5)
    rest = (1 - top.values.sum(1, keepdim=True)) / 3
    lumped = torch.ones_like(found).scatter(1, top.indices, 0) * rest
    torch.testing.assert_close(found.scatter(1, top.indices, 0), lumped, rtol=1e-4, atol=1e-5)


def test_characters_hold_the_taggers_answers(job, tmp_path):
    made = job(dtype="float32", outputs=("emissions", "marginals"))
    reader = StoreReader.open(made.make(tmp_path / "store"))
    order = np.random.default_rng(0).permutation(made.rows)
    emissions, mask = reader.ragged("emissions", made.part.ids[order])
    marginals, _ = reader.ragged("marginals", made.part.ids[order])
    assert mask.sum(1).tolist() == made.part.characters[order].tolist()
    assert (emissions[~mask] == 0).all() and (marginals[~mask] == 0).all()
    for place, row in enumerate(order.tolist()):
        expected = naive_output(made, row, marginals=True)
        torch.testing.assert_close(emissions[place][mask[place]], expected.logits[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(marginals[place][mask[place]], expected.marginals[0].exp(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"dtype": "float32"}, {"dtype": "float32", "precision": "bf16"}, {"tell_shape": True}]
)
def test_bytes_do_not_depend_on_ranks_or_threads(job, kind, tmp_path, hashes_of, settings):
    made = job(**settings, **kind)
    expected = hashes_of(made.make(tmp_path / "one"))
    assert len(expected) == 8 + 2
    for ranks, threads in ((1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (5, 1), (5, 2), (11, 1)):
        store = made.make(tmp_path / f"{ranks}x{threads}", ranks, threads)
        assert hashes_of(store) == expected, (ranks, threads)


def test_restart_computes_what_is_missing(job, kind, tmp_path, hashes_of):
    made = job(**kind)
    store = made.make(tmp_path / "store", ranks=2)
    expected = hashes_of(store)
    row = StoreReader.open(store).take(made.part.ids[130:140], made.outputs[0])
    for name in ("manifest.json", "shard-00001.arrow", "shard-00006.arrow"):
        (store / name).unlink()
    (store / ".tmp-shard-00001.arrow-0123").write_bytes(b"half")
    damaged = store / "shard-00003.arrow"
    content = bytearray(damaged.read_bytes())
    content[content.index(row.tobytes())] ^= 1
    damaged.write_bytes(content)
    made.teacher.seen = 0
    made.make(store, ranks=3)
    assert hashes_of(store) == expected
    ranges = [made.layout.shard_range(number) for number in (1, 3, 6)]
    assert made.teacher.seen == sum(len(distinct_texts(made.part, np.array(rows))[0]) for rows in ranges)


def test_shards_of_another_layout_are_not_kept(job, tmp_path, hashes_of):
    store = job().make(tmp_path / "store")
    old = hashes_of(store)
    (store / "manifest.json").unlink()
    other = job(seed=1)
    other.make(store)
    assert other.teacher.seen > 0
    assert hashes_of(store) == hashes_of(job(seed=1).make(tmp_path / "fresh"))
    assert all(hashes_of(store)[name] != old[name] for name in old)
    # The same shards, but without the record of the inputs for which they were made.
    (store / "identity.json").unlink()
    other.teacher.seen = 0
    other.make(store)
    assert other.teacher.seen > 0


def test_equal_texts_are_computed_once(job, tmp_path):
    made = job(shard_rows=300)
    made.make(tmp_path / "store")
    texts = {made.part.tokens[a:b].tobytes() for a, b in zip(made.part.offsets, made.part.offsets[1:], strict=False)}
    assert len(texts) < 250
    assert made.teacher.seen == len(texts)


def test_padding_and_repeats_are_told(job, tmp_path, capsys):
    made = job()
    made.make(tmp_path / "store")
    told = capsys.readouterr()
    tokens = padded = texts = 0
    for number in range(made.layout.shard_count):
        rows, _ = distinct_texts(made.part, np.array(made.layout.shard_range(number)))
        lengths = made.part.lengths[rows]
        texts += len(rows)
        tokens += lengths.sum()
        padded += sum(len(batch) * lengths[batch].max() for batch in inference_batches(lengths, 200))
    assert 0 < tokens < padded
    assert f"{300 - texts} repeat a text of their shard, {1 - tokens / padded:.1%} padding" in told.out + told.err


def test_a_slow_rank_delays_nobody(job, tmp_path, on_ranks):
    """The first batch of one rank lasts until the other ranks have computed everything else."""
    made, slow = job(), job().teacher
    store = tmp_path / "store"

    def wait(*_):
        end = time.monotonic() + 30
        while len(list(store.glob("shard-*"))) < 6 and time.monotonic() < end:
            time.sleep(0.01)

    slow.register_forward_pre_hook(wait)

    def work(world):
        teacher = slow if world.rank == 1 else made.teacher
        fill(StoreWriter(store, made.layout, made.part.ids), teacher, made.part, world, title="made-up")

    begin = time.monotonic()
    assert on_ranks(2, work) == [None, None]
    assert time.monotonic() - begin < 25
    assert 0 < slow.seen < made.teacher.seen


def test_distinct_texts_by_hand(job):
    made = job(rows=4, gap_at=None)
    part = made.part
    object.__setattr__(part, "tokens", np.array([7, 7, 8, 7, 7, 9], dtype=np.int32))
    object.__setattr__(part, "offsets", np.array([0, 1, 3, 4, 6]))  # [7] [7 8] [7] [7 9]
    rows, inverse = distinct_texts(part, np.array([0, 1, 2, 3]))
    assert rows.tolist() == [0, 1, 3] and inverse.tolist() == [0, 1, 0, 2]
    object.__setattr__(part, "types", np.array([0, 0, 0, 1, 0, 0], dtype=np.int8))
    rows, inverse = distinct_texts(part, np.array([0, 1, 2, 3]))
    assert rows.tolist() == [0, 1, 2, 3] and inverse.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("ranks", [1, 3])
def test_nan_names_the_rows_and_leaves_whole_shards(job, kind, tmp_path, on_ranks, ranks):
    made = job(**kind)
    row = int(np.flatnonzero(made.part.lengths > 4)[20])
    token = made.part.tokens[made.part.offsets[row] + 2]
    with torch.no_grad():
        made.teacher.embedding.weight[token] = float("nan")
    ids = [
        int(made.part.ids[row])
        for row in range(made.rows)
        if token in made.part.tokens[made.part.offsets[row] : made.part.offsets[row + 1]]
        and not (made.tagging and made.part.characters[row] == 0)
    ]
    store = tmp_path / "store"
    errors = on_ranks(ranks, lambda world: made.fill(store, world))
    assert all(isinstance(error, DtrainError) for error in errors)
    text = str(errors[0])
    assert "NaN or infinity" in text and any(f"id {i}" in text for i in ids)
    assert all(not error.problems for error in errors[1:])
    assert not (store / "manifest.json").exists()
    names = {path.name for path in store.iterdir()}
    assert not any(name.startswith(".tmp") for name in names)
    bad_shards = {np.searchsorted(made.part.ids, i) // 40 for i in ids}
    assert not names & {f"shard-{number:05d}.arrow" for number in bad_shards}


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "NaN or infinity"), (1e5, "do not fit float16")])
def test_a_bad_character_names_its_row(job, tmp_path, value, reason):
    """Rows 242 and 255 of the shard of rows 240 to 279; ids jump by 1000 at row 250."""
    made = job(outputs=("emissions",))
    store = StoreWriter(tmp_path / "store", made.layout, made.part.ids)
    lengths = made.part.characters[240:280].astype(np.int64)
    begin = np.cumsum(lengths) - lengths
    assert lengths[2] > 1 and lengths[15] > 1
    emissions = torch.zeros(int(lengths.sum()), made.layout.outputs["emissions"].width)
    emissions[begin[2] + lengths[2] - 1, 3] = value  # the last character of the row
    emissions[begin[15] : begin[15] + 2, 0] = value  # two characters of one row, which is named once
    with pytest.raises(DtrainError, match=rf"{reason}.*rows with id 242, 1255\b") as refused:
        store.write(6, {"emissions": emissions}, lengths)
    assert "emissions" in str(refused.value)
    assert not (store.path / "shard-00006.arrow").exists()


def test_values_beyond_float16_are_refused_with_the_way_out(job, tmp_path):
    made = job()
    with torch.no_grad():
        made.teacher.classifier.bias.fill_(1e5)
    with pytest.raises(DtrainError, match=r"do not fit float16 \(rows with id 0, 1, .*knowledge.dtype: float32"):
        made.make(tmp_path / "store")
    wide = job(dtype="float32")
    wide.teacher.load_state_dict(made.teacher.state_dict())
    wide.make(tmp_path / "store")
    verify(tmp_path / "store")


def test_probabilities_in_float16_sum_to_one(job, tmp_path):
    made = job(outputs=("marginals",))
    marginals, mask = StoreReader.open(made.make(tmp_path / "store")).ragged("marginals", made.part.ids)
    assert ((marginals.sum(-1)[mask] - 1).abs() < 2**-11).all()


def test_a_tagger_that_sees_other_characters_is_refused(job, tmp_path):
    made = job(outputs=("emissions",))
    row = int(np.flatnonzero(made.part.lengths > 6)[3])
    made.part.characters[row] += 1
    seen = made.part.lengths[row] - 2
    with pytest.raises(DtrainError, match=f"tagged {seen} characters of the row with id {row}, which has {seen + 1}$"):
        made.make(tmp_path / "store")


def test_disk_trouble_on_one_rank_ends_all(job, tmp_path, on_ranks, monkeypatch):
    import dtrain.knowledge.writer as writer

    def full(folder, number, *rest):
        if number == 2:
            raise OSError(28, "No space left on device")
        return real(folder, number, *rest)

    real = writer.write_shard
    monkeypatch.setattr(writer, "write_shard", full)
    made = job()
    errors = on_ranks(3, lambda world: made.fill(tmp_path / "store", world))
    assert [isinstance(error, DtrainError) for error in errors] == [True] * 3
    assert "No space left" in str(errors[0])
    monkeypatch.undo()
    made.make(tmp_path / "store", ranks=2)
    verify(tmp_path / "store")


def test_manifest_tells_what_the_contract_says(job, tmp_path):
    made = job()
    manifest = read_manifest(made.make(tmp_path / "store"))
    assert manifest.rows == 300 and manifest.outputs["logits"].shape == [5]
    assert [(s.first_row, s.rows) for s in manifest.shards] == [(i * 40, 40) for i in range(7)] + [(280, 20)]
    assert (manifest.shards[-1].first_id, manifest.shards[-1].last_id) == (1280, 1299)
    assert all((tmp_path / "store" / s.file).stat().st_size == s.bytes for s in manifest.shards)


def _killed_and_continued(store: Path, kills: int, kind: str) -> list[int]:
    worker = Path(__file__).parent / "killed_fills.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(dtrain.__file__).parents[1])}
    command = [sys.executable, worker, store, str(kills), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.splitlines()[-1].split()]


def test_killed_and_continued_gives_the_same_bytes(job, kinds, tmp_path, hashes_of):
    shards_at_kill = _killed_and_continued(tmp_path / "killed", 5, "tags")
    assert len(shards_at_kill) == 5
    assert hashes_of(tmp_path / "killed") == hashes_of(job(**kinds["tags"]).make(tmp_path / "whole"))


@pytest.mark.slow
def test_fifty_kills_give_the_same_bytes(job, kinds, tmp_path, hashes_of):
    expected = {name: hashes_of(job(**kinds[name]).make(tmp_path / name)) for name in kinds}
    seen = []
    for run, kind in zip(range(10), itertools.cycle(kinds), strict=False):
        seen += _killed_and_continued(tmp_path / f"killed{run}", 5, kind)
        assert hashes_of(tmp_path / f"killed{run}") == expected[kind]
    assert len(seen) == 50 and len(set(seen)) > 3  # it was killed at many different places


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(40, 40), (64, 32), (100, 50), (800, 100), (4000, 125), (53_360, 834), (400_000, 4096), (10**7, 4096)],
)
def test_the_rows_of_a_shard_follow_from_the_number_of_rows_alone(rows: int, expected: int) -> None:
    assert rows_of_shards("auto", rows) == expected
    assert rows_of_shards(7, rows) == 7


@pytest.mark.parametrize(
    ("rows", "ranks", "limit"),
    [(100, 2, 0.1), (1000, 2, 0.05), (10_000, 2, 0.05), (100_000, 2, 0.05), (4000, 8, 0.05), (53_360, 8, 0.05)],
)
def test_ranks_that_take_shards_from_the_counter_end_together(rows: int, ranks: int, limit: float) -> None:
    """Simulated with the padded tokens of each shard's batches, for rows as long as titles and equally fast ranks."""
    lengths = np.clip(np.random.default_rng(0).normal(25, 7, rows), 6, 44).astype(np.int64)
    size = rows_of_shards("auto", rows)
    load = np.zeros(ranks)
    for first in range(0, rows, size):
        of_shard = lengths[first : first + size]
        batches = inference_batches(of_shard, 512)
        load[load.argmin()] += sum(len(batch) * of_shard[batch].max() for batch in batches)
    assert load.max() <= (1 + limit) * load.mean()
