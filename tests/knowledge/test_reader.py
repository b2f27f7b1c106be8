"""Reading every row by its id, in any order, compared with a plain dictionary."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtrain.errors import DtrainError
from dtrain.knowledge import kinds
from dtrain.knowledge.format import Identity, StoreError, new_layout
from dtrain.knowledge.kinds import find_kind, kind_names
from dtrain.knowledge.reader import StoreReader
from dtrain.knowledge.top_k import largest, spread
from dtrain.knowledge.writer import StoreWriter

RAGGED = [name for name in kind_names() if find_kind(name).per_token]
NUMBERS = ("classes", "scores_numbers")  # columns that come with another one
IDENTITY = Identity(teacher="a" * 32, tokenizer="b" * 32, data="c" * 32)


def write(
    path, ids, columns, *, dtype="float16", shard_rows=7, identity=IDENTITY, characters=None, top_k=None, width=None
):
    """Write a store of the given values: an array of logits, or a dictionary of outputs by name."""
    columns = columns if isinstance(columns, dict) else {"logits": columns}
    layout = new_layout(
        identity,
        rows=len(ids),
        widths={name: width or values.shape[1] for name, values in columns.items() if name not in NUMBERS},
        dtype=dtype,
        precision="fp32",
        batch_tokens=100,
        shard_rows=shard_rows,
        top_k=top_k,
        characters=characters,
    )
    writer = StoreWriter(path, layout, ids)
    writer.prepare()
    bounds = None if characters is None else np.concatenate([[0], np.cumsum(characters)])
    for number in reversed(range(layout.shard_count)):
        rows = layout.shard_range(number)
        cut = slice(rows.start, rows.stop)
        in_characters = None if bounds is None else slice(bounds[rows.start], bounds[rows.stop])
        values = {
            name: torch.from_numpy(found[in_characters if name in RAGGED else cut]) for name, found in columns.items()
        }
        writer.write(number, values, None if characters is None else characters[cut])
    writer.publish()
    return StoreReader.open(path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_take_equals_a_dictionary(tmp_path_factory, data):
    ids = np.array(sorted(data.draw(st.sets(st.integers(0, 400), min_size=1, max_size=60))), dtype=np.int64)
    dtype = data.draw(st.sampled_from(["float16", "float32"]))
    shard_rows = data.draw(st.integers(1, 70))
    logits = np.random.default_rng(0).normal(size=(len(ids), 3)).astype(np.float32)
    reader = write(tmp_path_factory.mktemp("store") / "s", ids, logits, dtype=dtype, shard_rows=shard_rows)
    naive = dict(zip(ids.tolist(), logits.astype(dtype), strict=True))
    for _ in range(4):
        asked = np.array(data.draw(st.lists(st.sampled_from(ids.tolist()), max_size=50)), dtype=np.int64)
        taken = reader.take(asked)
        assert taken.dtype == dtype and taken.shape == (len(asked), 3)
        assert all((row == naive[i]).all() for i, row in zip(asked.tolist(), taken, strict=True))
        as_tensor = reader.logits(asked)
        assert as_tensor.dtype == torch.float32 and (as_tensor.numpy() == taken).all()
    unknown = data.draw(st.integers(-5, 410).filter(lambda i: i not in naive))
    with pytest.raises(StoreError, match=f"no row with id {unknown}$"):
        reader.take(np.array([ids[0], unknown]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ragged_equals_a_dictionary(tmp_path_factory, data):
    ids = np.array(sorted(data.draw(st.sets(st.integers(0, 400), min_size=1, max_size=40))), dtype=np.int64)
    characters = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(ids), max_size=len(ids))))
    random = np.random.default_rng(0)
    emissions, marginals = random.normal(size=(2, characters.sum(), 3)).astype(np.float32)
    features = random.normal(size=(len(ids), 2)).astype(np.float32)
    columns = {"emissions": emissions, "marginals": marginals, "features": features}
    shard_rows = data.draw(st.integers(1, 50))
    place = tmp_path_factory.mktemp("store") / "s"
    reader = write(place, ids, columns, dtype="float32", shard_rows=shard_rows, characters=characters)
    assert reader.outputs == ("features", "emissions", "marginals") and reader.width("emissions") == 3
    ends = np.cumsum(characters)
    asked = np.array(data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=30)), dtype=np.int64)
    assert (reader.read("features", ids[asked]).numpy() == features[asked]).all()
    for name, values in (("emissions", emissions), ("marginals", marginals)):
        found, mask = reader.ragged(name, ids[asked])
        longest = characters[asked].max(initial=0)
        assert found.dtype == torch.float32 and found.shape == (len(asked), longest, 3)
        assert mask.dtype == torch.bool and mask.shape == (len(asked), longest)
        for place, row in enumerate(asked.tolist()):
            expected = np.zeros((longest, 3), np.float32)
            expected[: characters[row]] = values[ends[row] - characters[row] : ends[row]]
            assert (found[place].numpy() == expected).all()
            assert mask[place].tolist() == [True] * characters[row] + [False] * (longest - characters[row])


def test_top_k_of_a_kind_from_outside_is_read_as_logits_are(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    kinds.register_kind(kinds.OutputKind("scores", "classification", lambda output: output.logits, top_k=True))
    values, classes = largest(torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), 2)
    both = {"logits": values.numpy(), "classes": classes.numpy()}
    columns = both | {"scores": values.numpy(), "scores_numbers": classes.numpy()}
    store = write(tmp_path / "store", np.arange(9), columns, dtype="float32", top_k=2, width=6)
    assert [column.name for column in store.manifest.columns] == list(columns)
    asked = np.array([8, 0, 3])
    assert torch.equal(store.read("scores", asked), spread(values[asked], classes[asked], 6))
    assert torch.equal(store.read("scores", asked), store.read("logits", asked))


def test_an_output_that_is_not_stored_is_named(tmp_path):
    reader = write(tmp_path / "store", np.arange(5), np.zeros((5, 4), np.float32))
    for read in (lambda ids: reader.read("features", ids), lambda ids: reader.ragged("features", ids)):
        with pytest.raises(StoreError, match="holds logits, not features: see knowledge.outputs"):
            read(np.arange(2))


def size(store, rows):
    return sum(path.stat().st_size for path in store.iterdir()) / rows


def test_bytes_a_row(tmp_path):
    for classes in (2, 15, 120):
        write(tmp_path / str(classes), np.arange(5000), np.zeros((5000, classes), np.float32), shard_rows=4096)
        assert size(tmp_path / str(classes), 5000) <= 2 * classes + 24
    values, classes = np.zeros((5000, 9), np.float32), np.zeros((5000, 8), np.int64)
    columns = {"logits": values, "classes": classes}
    write(tmp_path / "top", np.arange(5000), columns, shard_rows=4096, top_k=8, width=3000)
    assert size(tmp_path / "top", 5000) <= 2 * 9 + 2 * 8 + 24
    characters = np.full(5000, 10)
    columns = {"emissions": np.zeros((50000, 7), np.float32)}
    write(tmp_path / "tags", np.arange(5000), columns, shard_rows=4096, characters=characters)
    assert size(tmp_path / "tags", 5000) <= 2 * 7 * 10 + 24


def layout_of(widths, **settings):
    fixed = {"dtype": "float32", "precision": "fp32", "batch_tokens": 1}
    return new_layout(IDENTITY, widths=widths, **fixed, **settings)


def test_shards_stay_under_64_mb():
    layout = layout_of({"logits": 1000}, rows=10**9, shard_rows=10**6)
    assert layout.shard_rows * (8 + 4000) <= 64 * 2**20 < (layout.shard_rows + 1) * (8 + 4000)
    characters = np.random.default_rng(0).integers(0, 500, 100_000)
    layout = layout_of({"emissions": 21, "marginals": 21}, rows=100_000, shard_rows=4096, characters=characters)
    sums = [characters[r.start : r.stop].sum() for r in map(layout.shard_range, range(layout.shard_count))]
    largest = max(sums) * 2 * 21 * 4 + layout.shard_rows * 16
    assert 48 * 2**20 < largest <= 64 * 2**20
    assert layout_of({"logits": 15}, rows=10**6, shard_rows=4096).shard_rows == 4096


def test_outputs_in_another_order_are_the_same_store():
    one = layout_of({"logits": 3, "features": 4}, rows=9, shard_rows=4)
    two = layout_of({"features": 4, "logits": 3}, rows=9, shard_rows=4)
    assert one.fingerprint == two.fingerprint and one.columns == two.columns
    for key, value in (("compiled", True), ("unpadded", True), ("top_k", 2)):
        assert (
            layout_of({"logits": 3, "features": 4}, rows=9, shard_rows=4, **{key: value}).fingerprint != one.fingerprint
        )
    assert layout_of({"logits": 3}, rows=9, shard_rows=4, top_k=3) == layout_of({"logits": 3}, rows=9, shard_rows=4)


def test_a_shard_is_a_plain_arrow_file(tmp_path):
    """Other tools read it: here `datasets`, from the file alone."""
    random = np.random.default_rng(2)
    values = random.normal(size=(9, 3)).astype(np.float32)
    tags = random.normal(size=(20, 2)).astype(np.float32)
    characters = np.array([3, 0, 5, 1, 1, 4, 2, 3, 1])
    columns = {"features": values, "emissions": tags}
    write(tmp_path / "store", np.arange(9), columns, dtype="float32", shard_rows=9, characters=characters)
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "store" / "shard-00000.arrow"))).read_all()
    rows = datasets.Dataset(table)
    assert rows["id"][:] == list(range(9))
    assert np.array_equal(np.array(rows["features"][:], dtype=np.float32), values)
    assert [len(row) for row in rows["emissions"][:]] == characters.tolist()
    assert np.array_equal(np.array([c for row in rows["emissions"][:] for c in row], dtype=np.float32), tags)


def test_ids_must_ascend(tmp_path):
    with pytest.raises(DtrainError, match="row ids must ascend"):
        write(tmp_path / "store", np.array([0, 2, 1]), np.zeros((3, 2), np.float32))
