"""However a store on disk was damaged, opening it reports what is wrong and where, and nothing is read from it."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dtrain.knowledge import format
from dtrain.knowledge.format import Identity, StoreError, checksum, read_manifest
from dtrain.knowledge.reader import StoreReader
from dtrain.knowledge.shard import ShardProblem, read_shard, write_shard
from dtrain.knowledge.verify import verify
from dtrain.knowledge.writer import StoreWriter
from dtrain.runfolder import file_fingerprint

SHARDS = 8


@pytest.fixture(scope="module")
def stores(job, kind, tmp_path_factory):
    """A complete store, and stores that differ from it only in the teacher or in the settings."""
    folder = tmp_path_factory.mktemp("stores")
    job(**kind).make(folder / "whole")
    job(seed=1, **kind).make(folder / "other-teacher")
    job(batch_tokens=100, **kind).make(folder / "other-settings")
    return folder


def edit(path, change, *, sign):
    """Change values of the manifest; `sign` updates its checksum, as a careful forger would."""
    values = json.loads(path.read_text())
    values.pop("checksum") if sign else None
    change(values)
    if sign:
        values["checksum"] = checksum(values)
    path.write_text(json.dumps(values))


def flip_bit(path, random, upto=None):
    content = bytearray(path.read_bytes())
    place = random.randrange(upto or len(content))
    content[place] ^= 1 << random.randrange(8)
    path.write_bytes(content)


# Each function damages a copy of the complete store and returns the damaged file and a pattern of the expected reason.


def bit_in_shard(store, random, others):
    name = shard(random)
    flip_bit(store / name, random)
    return name, r"damaged: (its sha256 is|not a readable|its header|columns|\d+ rows|\d+ record batches)"


def bit_in_shard_header(store, random, others):
    name = shard(random)
    flip_bit(store / name, random, upto=1100)
    return name, r"damaged: "


def truncated(store, random, others):
    name = shard(random)
    content = (store / name).read_bytes()
    (store / name).write_bytes(content[: random.randrange(len(content))])
    return name, r"damaged: truncated to \d+ of \d+ bytes"


def grown(store, random, others):
    name = shard(random)
    with (store / name).open("ab") as file:
        file.write(bytes(random.randrange(1, 100)))
    return name, r"damaged: \d+ bytes, expected \d+"


def missing(store, random, others):
    name = shard(random)
    (store / name).unlink()
    return name, "missing"


def swapped(store, random, others):
    one, two = (f"shard-{number:05d}.arrow" for number in random.sample(range(SHARDS), 2))
    (store / one).rename(store / "aside")
    (store / two).rename(store / one)
    (store / "aside").rename(store / two)
    return one, rf"holds shard {int(two[6:11])} of this store"


def copied_over_another(store, random, others):
    one, two = (f"shard-{number:05d}.arrow" for number in random.sample(range(SHARDS), 2))
    shutil.copy(store / one, store / two)
    return two, rf"holds shard {int(one[6:11])} of this store \(copied or swapped\), so that rows come twice"


def one_too_many(store, random, others):
    shutil.copy(store / shard(random), store / "shard-00008.arrow")
    return "shard-00008.arrow", "is not in the manifest"


def of_another_teacher(store, random, others):
    name = shard(random)
    shutil.copy(others / "other-teacher" / name, store / name)
    return name, rf"another store: its teacher is {1:032x}, this store's {0:032x}"


def of_other_settings(store, random, others):
    name = shard(random)
    shutil.copy(others / "other-settings" / name, store / name)
    return name, "another store: same teacher and data, stored with other settings"


def bit_in_manifest(store, random, others):
    flip_bit(store / "manifest.json", random)
    return (
        "manifest.json",
        r"damaged: not a manifest|damaged or edited: its checksum|format .*, but this version",
    )


def truncated_manifest(store, random, others):
    content = (store / "manifest.json").read_bytes().rstrip()
    (store / "manifest.json").write_bytes(content[: random.randrange(len(content))])
    return "manifest.json", "damaged: not a manifest"


def no_manifest(store, random, others):
    (store / "manifest.json").unlink()
    return "manifest.json", "not finished"


def edited_manifest(store, random, others):
    key, value = random.choice([("rows", 299), ("precision", "bf16"), ("batch_tokens", 1), ("more", 1)])
    edit(store / "manifest.json", lambda values: values.update({key: value}), sign=False)
    return "manifest.json", "damaged or edited: its checksum is"


def newer_manifest(store, random, others):
    edit(store / "manifest.json", lambda values: values.update(format=3), sign=True)
    return "manifest.json", "format 3, but this version reads format 2"


def forged_manifest(store, random, others):
    def other_sum(values):
        values["shards"][3]["sha256"] = "0" * 64

    def doubled(values):
        values["shards"][4] = values["shards"][3]

    def overlapping(values):
        values["shards"][4]["first_id"] = values["shards"][3]["last_id"]

    def lost(values):
        del values["shards"][4]

    def other_teacher(values):
        values["fingerprints"]["teacher"] = "f" * 32

    def unknown_key(values):
        values["shards"][1]["comment"] = "hello"

    def outside(values):
        values["shards"][1]["file"] = "../whole/shard-00001.arrow"

    change, file, reason = random.choice(
        [
            (other_sum, "shard-00003.arrow", "damaged: its sha256"),
            (doubled, "manifest.json", "'shard-00003.arrow', expected 'shard-00004.arrow'"),
            (overlapping, "manifest.json", "a row twice"),
            (lost, "manifest.json", "7 shards for 300 rows, expected 8"),
            (other_teacher, "shard-00000.arrow", f"its teacher is {0:032x}, this store's {'f' * 32}"),
            (unknown_key, "manifest.json", "shards.1.comment"),
            (outside, "manifest.json", "shard 1 is called"),
        ]
    )
    edit(store / "manifest.json", change, sign=True)
    return file, reason


def folder_for_a_shard(store, random, others):
    name = shard(random)
    (store / name).unlink()
    (store / name).mkdir()
    (store / name / "file").touch()
    return name, "missing"


def folder_for_the_manifest(store, random, others):
    (store / "manifest.json").unlink()
    (store / "manifest.json").mkdir()
    return "manifest.json", "cannot be read: Is a directory"


DAMAGES = [
    bit_in_shard,
    bit_in_shard_header,
    truncated,
    grown,
    missing,
    swapped,
    copied_over_another,
    one_too_many,
    of_another_teacher,
    of_other_settings,
    bit_in_manifest,
    truncated_manifest,
    no_manifest,
    edited_manifest,
    newer_manifest,
    forged_manifest,
    folder_for_a_shard,
    folder_for_the_manifest,
]


def shard(random):
    return f"shard-{random.randrange(SHARDS):05d}.arrow"


def refused(damage, stores: Path, copy: Path, seed: int, keep: bool = False) -> None:
    chance = random.Random(seed)
    shutil.copytree(stores / "whole", copy)
    file, reason = damage(copy, chance, stores)
    for look in (StoreReader.open, verify):
        with pytest.raises(StoreError) as caught:
            look(copy)
        blamed = [p for p in caught.value.problems if p.startswith(f"{copy / file}: ")]
        assert any(re.search(reason, problem) for problem in blamed), (seed, reason, caught.value.problems)
    if not keep:
        shutil.rmtree(copy)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_with_its_reason(damage, stores, tmp_path):
    for seed in range(4):
        refused(damage, stores, tmp_path / "copy", seed)


@pytest.mark.slow
def test_500_damages_are_refused_with_their_reason(stores, tmp_path):
    for seed in range(500):
        refused(DAMAGES[seed % len(DAMAGES)], stores, tmp_path / "copy", seed)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_mended_by_filling_again(damage, stores, job, kind, tmp_path, hashes_of):
    """The bytes are the same as before, and only the damaged shards are computed."""
    copy = tmp_path / "copy"
    for seed in range(3):
        refused(damage, stores, copy, seed, keep=True)
        assert any(problem.startswith(f"{copy}/") for problem in format.damage(copy))
        made = job(**kind)
        made.make(copy)
        assert format.damage(copy) == []
        assert hashes_of(copy) == hashes_of(stores / "whole")
        assert made.teacher.seen <= 2 * made.shard_rows, "whole shards are kept"
        shutil.rmtree(copy)


def test_the_whole_store_is_accepted(stores):
    """Otherwise the refusals above would prove nothing."""
    for name in ("whole", "other-teacher", "other-settings"):
        assert verify(stores / name).rows == 300


def test_without_checksums_everything_but_flipped_values_is_refused(stores, tmp_path):
    copy = tmp_path / "copy"
    for damage in (truncated, grown, missing, swapped, of_another_teacher, edited_manifest):
        shutil.copytree(stores / "whole", copy)
        file, reason = damage(copy, random.Random(0), stores)
        with pytest.raises(StoreError, match=reason):
            StoreReader.open(copy, checksums=False)
        shutil.rmtree(copy)


def test_another_identity_is_refused_with_both_fingerprints(stores):
    manifest = read_manifest(stores / "whole")
    assert len(StoreReader.open(stores / "whole", expect=manifest.fingerprints)) == 300
    for field in ("teacher", "tokenizer", "data"):
        wanted = Identity.model_validate({**manifest.fingerprints.model_dump(), field: "9" * 32})
        found = getattr(manifest.fingerprints, field)
        for look in (StoreReader.open, verify):
            with pytest.raises(StoreError, match=f"another {field}: its fingerprint is {found}, expected {'9' * 32}"):
                look(stores / "whole", expect=wanted)


def test_a_store_of_other_rows_than_the_data_does_not_pass_verification(stores, job, kind):
    ids = job(**kind).part.ids
    verify(stores / "whole", ids=ids)
    with pytest.raises(StoreError, match="300 rows for 301 of the data: lacks the row with id 777$"):
        verify(stores / "whole", ids=np.sort(np.append(ids, 777)))
    with pytest.raises(StoreError, match="300 rows for 299 of the data: has a row with id 3, not in the data$"):
        verify(stores / "whole", ids=np.delete(ids, 3))


@pytest.mark.parametrize("column", ["emissions", "marginals", "logits", "features"])
def test_values_that_are_no_numbers_do_not_pass_verification(tmp_path, job, column):
    """Only other software could write such a store; its checksums are right."""
    made = job(outputs=("logits", "features") if column in ("logits", "features") else ("emissions", "marginals"))
    made.make(tmp_path / "store")
    rows = read_shard(tmp_path / "store", 0, made.layout, contents=True)
    values = {name: found.copy() for name, found in rows.values.items()}
    wrong = next(row for row in range(7, 40) if made.part.lengths[row] > 2)
    place = rows.offsets[wrong + 1] - 1 if column in ("emissions", "marginals") else wrong
    values[column][place, 2] = np.inf
    write_shard(tmp_path / "store", 0, made.layout, rows._replace(values=values))
    StoreWriter(tmp_path / "store", made.layout, made.part.ids).publish()
    with pytest.raises(StoreError, match=rf"00000.arrow: NaN or infinity in the {column}, first .* with id {wrong}$"):
        verify(tmp_path / "store")


def test_a_row_twice_inside_a_shard_is_refused(tmp_path, job):
    made = job()
    made.make(tmp_path / "store")
    rows = read_shard(tmp_path / "store", 0, made.layout, contents=True)
    ids = rows.ids.copy()
    ids[5] = ids[4]
    write_shard(tmp_path / "store", 0, made.layout, rows._replace(ids=ids))

    def fit(values):
        path = tmp_path / "store" / "shard-00000.arrow"
        values["shards"][0].update(sha256=file_fingerprint(path), bytes=path.stat().st_size)

    edit(tmp_path / "store" / "manifest.json", fit, sign=True)
    with pytest.raises(StoreError, match="shard-00000.arrow: ids do not ascend after id 4: a row twice"):
        StoreReader.open(tmp_path / "store")


def test_columns_that_cut_rows_at_different_places_are_refused(tmp_path, job):
    made = job(outputs=("emissions", "marginals"))
    store = made.make(tmp_path / "store")
    path = store / "shard-00000.arrow"
    with pa.ipc.open_file(path) as file:
        schema, batch = file.schema, file.get_batch(0)
    shifted = batch.column("marginals").offsets.to_numpy().copy()
    shifted[3] = shifted[2]
    marginals = pa.ListArray.from_arrays(pa.array(shifted), batch.column("marginals").values, type=schema.types[2])
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_batch(pa.record_batch([batch.column(0), batch.column(1), marginals], schema=schema))
    with pytest.raises(ShardProblem, match="rows differ in length"):
        read_shard(store, 0, made.layout, contents=False)
