"""Reading: every row by its id, in any order, against a plain dictionary."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtrain.errors import DtrainError
from dtrain.knowledge import Identity, KnowledgeReader, StoreError, StoreReader, StoreWriter, new_layout

IDENTITY = Identity(teacher="a" * 32, tokenizer="b" * 32, data="c" * 32)


def write(path, ids, logits, *, dtype="float16", shard_rows=7, identity=IDENTITY):
    """A store of the given values."""
    layout = new_layout(
        identity,
        rows=len(ids),
        classes=logits.shape[1],
        dtype=dtype,
        precision="fp32",
        batch_tokens=100,
        shard_rows=shard_rows,
    )
    writer = StoreWriter(path, layout, ids)
    writer.prepare()
    for number in reversed(range(layout.shard_count)):
        rows = layout.shard_range(number)
        writer.write(number, torch.from_numpy(logits[rows.start : rows.stop]))
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


def test_several_stores_side_by_side(tmp_path):
    ids = np.arange(20)
    values = np.random.default_rng(1).normal(size=(3, 20, 4)).astype(np.float32)
    readers = [write(tmp_path / str(k), ids, values[k], dtype="float32") for k in range(3)]
    asked = np.array([19, 0, 7, 7])
    both = KnowledgeReader(readers).logits(asked)
    assert both.shape == (3, 4, 4)
    assert (both.numpy() == values[:, asked]).all()


def test_stores_of_other_data_or_classes_do_not_mix(tmp_path):
    ids = np.arange(5)
    one = write(tmp_path / "one", ids, np.zeros((5, 4), np.float32))
    other_data = IDENTITY.model_copy(update={"data": "d" * 32})
    two = write(tmp_path / "two", ids, np.zeros((5, 4), np.float32), identity=other_data)
    three = write(tmp_path / "three", ids, np.zeros((5, 6), np.float32))
    with pytest.raises(StoreError, match=f"its data is {'d' * 32}, but that of .*one is {'c' * 32}"):
        KnowledgeReader([one, two])
    with pytest.raises(StoreError, match="its number of classes is 6, but that of .*one is 4"):
        KnowledgeReader([one, three])


def test_bytes_a_row(tmp_path):
    for classes in (2, 15, 120):
        store = tmp_path / str(classes)
        write(store, np.arange(5000), np.zeros((5000, classes), np.float32), shard_rows=4096)
        total = sum(path.stat().st_size for path in store.iterdir())
        assert total / 5000 <= 2 * classes + 24


def test_shards_stay_under_64_mb():
    layout = new_layout(
        IDENTITY,
        rows=10**9,
        classes=1000,
        dtype="float32",
        precision="fp32",
        batch_tokens=1,
        shard_rows=10**6,
    )
    assert layout.shard_rows * (8 + 4000) <= 64 * 2**20 < (layout.shard_rows + 1) * (8 + 4000)


def test_a_shard_is_a_plain_arrow_file(tmp_path):
    """Other tools read it: here `datasets`, from the file alone."""
    values = np.random.default_rng(2).normal(size=(9, 3)).astype(np.float32)
    write(tmp_path / "store", np.arange(9), values, dtype="float32", shard_rows=9)
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "store" / "shard-00000.arrow"))).read_all()
    rows = datasets.Dataset(table)
    assert rows["id"][:] == list(range(9))
    assert np.array_equal(np.array(rows["logits"][:], dtype=np.float32), values)


def test_ids_must_ascend(tmp_path):
    with pytest.raises(DtrainError, match="row ids must ascend"):
        write(tmp_path / "store", np.array([0, 2, 1]), np.zeros((3, 2), np.float32))
