"""The stage: what it writes reads back, redoes only what changed, and leaves nothing behind for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from dtrain.data import EncodedSplit, Normalizer, PreparedData, encode_texts
from dtrain.data.encode import Encoder
from dtrain.errors import DtrainError, InputError
from dtrain.recipe.data import Normalization
from dtrain.recipe.training import Teacher
from dtrain.report.results import _unknown
from dtrain.runfolder import RunFolder

BERT = {"name": "big", "model": {"type": "bert", "vocabulary_size": 200}}
Prepare = Callable[..., RunFolder]
Write = Callable[[str, list[Any]], str]


def changed_files(before: dict[Path, int], folder: Path) -> set[str]:
    after = stamps(folder)
    return {path.relative_to(folder).parts[0] + "/" + path.relative_to(folder).parts[1]
            for path in after if before.get(path) != after[path]}  # fmt: skip


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def test_everything_written_reads_back(prepare_run: Prepare, corpus: dict[str, Any]) -> None:
    data = PreparedData.open(prepare_run(corpus, teachers=(BERT,)))
    assert data.parts == ["train", "valid", "test", "transfer"]
    assert data.labels == ["体育", "新闻"]
    normalizer = Normalizer(Normalization())
    next_id = 0
    for part, files in zip(data.parts, ("train", "valid", "test", "transfer"), strict=True):
        raw = Path(corpus[files]).read_text(encoding="utf-8").splitlines()
        texts = raw if part == "transfer" else [json.loads(line)["text"] for line in raw]
        rows = data.rows(part)
        assert rows["id"][:] == list(range(next_id, next_id + len(texts)))
        next_id += len(texts)
        assert rows["text"][:] == [normalizer(text) for text in texts]
        assert [data.info["files"][number] for number in rows["file"]] == [corpus[files]] * len(texts)
        assert rows["line"][:] == list(range(1, len(texts) + 1))
        labelled = part in ("train", "valid")
        expected = [data.labels.index(json.loads(line)["label"]) for line in raw] if labelled else [-1] * len(texts)
        for tokenizer in ("students", "big"):
            loaded = AutoTokenizer.from_pretrained(data.tokenizer_path(tokenizer))
            assert (len(loaded), loaded.pad_token_id) == (data.vocabulary(tokenizer), data.pad_id(tokenizer))
            encoded = data.part(part, tokenizer)
            assert encoded.ids.tolist() == rows["id"][:]
            assert encoded.labels.tolist() == expected
            wanted = loaded(rows["text"][:], truncation=True, max_length=32)["input_ids"]
            assert [list(row) for row in np.split(encoded.tokens, encoded.offsets[1:-1])] == wanted
            assert encoded.lengths.tolist() == [len(row) for row in wanted]
            assert encoded.rows()["key"][:] == rows["key"][:]


def test_collate_against_a_plain_loop(prepare_run: Prepare, corpus: dict[str, Any]) -> None:
    data = PreparedData.open(prepare_run(corpus))
    parts = [data.part("train", "students"), data.part("transfer", "students")]
    part = EncodedSplit.concat(parts)
    assert len(part) == 45
    assert part.ids.tolist() == [*range(40), *range(56, 61)]
    assert part.rows()["id"][:] == part.ids.tolist()
    lists = [row.tolist() for one in parts for row in np.split(one.tokens, one.offsets[1:-1])]
    index = np.array([44, 0, 13, 40, 39])
    batch = part.collate(index)
    longest = max(len(lists[i]) for i in index)
    for row, i in enumerate(index):
        padding = longest - len(lists[i])
        assert batch["input_ids"][row].tolist() == lists[i] + [part.pad_id] * padding
        assert batch["attention_mask"][row].tolist() == [1] * len(lists[i]) + [0] * padding
    assert {name: values.dtype for name, values in batch.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
    }
    assert part.collate(np.array([], dtype=np.int64))["input_ids"].shape == (0, 0)


def test_a_given_vocabulary_that_knows_little_of_the_text_is_told(
    prepare_run: Prepare, corpus: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "第", "条"]))
    big = {"name": "big", "model": {"type": "bert", "vocabulary": str(tmp_path / "vocab.txt")}}
    folder = prepare_run(corpus, teachers=(big,))
    part = PreparedData.open(folder)
    tokens = np.concatenate([part.part(name, "big").tokens for name in part.parts])
    share = float((tokens == 1).mean())
    assert 0.3 < share < 1
    told = capsys.readouterr().err
    assert f"warning: big: its tokenizer does not know {share:.0%} of the tokens" in told and "students:" not in told
    encoded = {
        name: json.loads((folder.data / "encoded" / name / "encoded.json").read_text()) for name in ("big", "students")
    }
    assert encoded["big"]["unknown"] == pytest.approx(share) and "unknown" not in encoded["students"]
    members = [("teachers", Teacher.model_validate(big))]
    assert _unknown(members, folder)[0].startswith("big: its tokenizer does not know")


def test_pairs(prepare_run: Prepare, jsonl: Write) -> None:
    rows = [{"text": "一" * (n % 4), "b": "二" * n, "label": n % 2} for n in range(12)]
    section = {"task": "pairs", "train": jsonl("t.jsonl", rows), "columns": {"text_b": "b"}}
    section |= {"max_length": 10, "vocabulary": {"min_count": 1}, "split": {"valid": 0}}
    data = PreparedData.open(prepare_run(section, teachers=(BERT,)))
    assert data.rows("train")["text_b"][:] == ["二" * n for n in range(12)]
    loaded = AutoTokenizer.from_pretrained(data.tokenizer_path("big"))
    part = data.part("train", "big")
    texts, texts_b = ([row[name] for row in rows] for name in ("text", "b"))
    wanted = loaded(texts, texts_b, truncation="longest_first", max_length=10, padding=True, return_tensors="pt")
    batch = part.collate(np.arange(12))
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
    for name, values in batch.items():
        assert torch.equal(values, wanted[name])
    new = encode_texts(Encoder(loaded, 10, pairs=True), loaded.pad_token_id, texts, texts_b)
    assert all(torch.equal(values, wanted[name]) for name, values in new.collate(np.arange(12)).items())
    assert "token_type_ids" not in data.part("train", "students").collate(np.arange(3))
    assert data.info["empty_texts"] == {"train": 3}


def test_only_what_changed_is_done_again(
    prepare_run: Prepare, corpus: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare_run(corpus, teachers=(BERT,)).data
    first = capsys.readouterr().out
    assert "train 40, valid 10, test 6, transfer 5 rows; 2 labels; big " in first
    before = stamps(folder)
    prepare_run(corpus, teachers=(BERT,))
    assert capsys.readouterr().out == "prepare: the data is there already\n"
    assert not changed_files(before, folder)
    prepare_run(corpus, teachers=(BERT,), identities={"big": "big-2"})
    assert changed_files(before, folder) == {"encoded/big", "tokenizers/big"}
    before = stamps(folder)
    (folder / "tokenizers" / "students" / "tokenizer.json").unlink()
    prepare_run(corpus, teachers=(BERT,), identities={"big": "big-2"})
    assert changed_files(before, folder) == {"encoded/students", "tokenizers/students"}
    before = stamps(folder)
    prepare_run(corpus, teachers=(BERT,), identities={"rows": "rows-2", "big": "big-3", "students": "students-3"})
    assert {name.split("/")[0] for name in changed_files(before, folder)} == {"rows", "encoded", "tokenizers"}


def test_rows_and_what_is_encoded_from_them_stay_in_step(prepare_run: Prepare, corpus: dict[str, Any]) -> None:
    folder = prepare_run(corpus)
    before = PreparedData.open(folder).fingerprint
    assert (
        PreparedData.open(prepare_run(corpus, identities={"rows": "again", "students": "again"})).fingerprint == before
    )
    # The rows change, and the encoded parts claim to be of them.
    data = {**corpus, "normalize": {"lower": False}}
    folder = prepare_run(data, identities={"rows": "other", "students": "again"})
    assert PreparedData.open(folder).fingerprint != before
    with pytest.raises(DtrainError, match="encoded from other rows"):
        PreparedData.open(folder).part("train", "students")
    with pytest.raises(DtrainError, match="there is no part 'dev'"):
        PreparedData.open(folder).part("dev", "students")
    with pytest.raises(DtrainError, match="not encoded yet"):
        PreparedData.open(folder).part("train", "nobody")


def test_nothing_prepared(tmp_path: Path) -> None:
    with pytest.raises(DtrainError, match="no prepared data here"):
        PreparedData.open(RunFolder(tmp_path))


@pytest.mark.parametrize("bad", ["rows", "pretrained"])
def test_bad_input_leaves_nothing(bad: str, prepare_run: Prepare, corpus: dict[str, Any], tmp_path: Path) -> None:
    teachers = ()
    if bad == "rows":
        with Path(corpus["train"]).open("a", encoding="utf-8") as file:
            file.write("{\n")
    else:
        (tmp_path / "none").mkdir()
        teachers = ({"name": "t", "model": {"type": "bert", "pretrained": str(tmp_path / "none")}},)
    with pytest.raises(InputError):
        prepare_run(corpus, teachers=teachers)
    assert not (tmp_path / "runs").exists()


def test_what_the_user_is_told(prepare_run: Prepare, jsonl: Write, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": "x" * n, "label": "ab"[n % 2]} for n in range(8)]
    section = {
        "train": jsonl("t.jsonl", rows),
        "valid": jsonl("v.jsonl", [*rows[:2], {"text": "y", "label": "a"}]),
        "labels": ["a", "b", "c"],
        "max_length": 5,
    }
    info = PreparedData.open(prepare_run(section)).info
    said = capsys.readouterr()
    assert "no training row has label 'c'" in said.err
    assert "train: 1 row with an empty text" in said.err
    assert "2 of 3 valid rows have a text that is in training" in said.out
    assert "(18.2% of rows cut at 5)" in said.out  # two of eleven
    assert info["label_counts"] == {"train": {"a": 4, "b": 4, "c": 0}, "valid": {"a": 2, "b": 1, "c": 0}}


def test_nothing_lands_in_the_users_cache(corpus: dict[str, Any], tmp_path: Path) -> None:
    data = {"train": corpus["train"], "split": {"valid": 0}, "workers": 2}
    recipe = {"name": "run", "data": data, "students": [{"name": "s", "model": {"type": "bilstm"}}]}
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from dtrain.data import write\n"
        "from dtrain.recipe.schema import Recipe\n"
        "from dtrain.runfolder import RunFolder\n"
        "from dtrain.stages.prepare import prepare\n"
        "write.WORKER_BYTES = 0\n"
        "prepare(Recipe.model_validate(json.loads(sys.argv[1])), RunFolder(Path(sys.argv[2])), 'r', str)\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))} | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(recipe), str(tmp_path / "run")],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    assert not [path for path in home.rglob("*") if path.is_file()]
    assert not [path for path in (tmp_path / "run").rglob("*") if "scratch" in path.name or path.name.startswith(".")]
    # With worker processes the rows are those of one process.
    assert PreparedData.open(RunFolder(tmp_path / "run")).rows("train")["text"][3] == "第3条,说明文字 abc3"


def test_real_news_titles(prepare_run: Prepare, data_folder: Path) -> None:
    news = data_folder / "tnews"
    section = {
        "train": str(news / "train.json"),
        "valid": str(news / "dev.json"),
        "columns": {"text": "sentence"},
        "labels": str(news / "labels.json"),
        "max_length": 64,
    }
    info = PreparedData.open(prepare_run(section, students=())).info
    assert info["rows"] == {"train": 53360, "valid": 10000}
    assert info["labels"] == [str(n) for n in range(100, 117) if n not in (105, 111)]
    assert sum(info["label_counts"]["train"].values()) == 53360
    assert info["also_in_train"] == {"valid": 1099}  # as counted over the raw files

    section |= {"train": section["valid"], "valid": [], "test": str(news / "test.json")}
    section |= {"transfer": str(news / "transfer.txt"), "split": {"valid": 0}}
    data = PreparedData.open(prepare_run(section, identities={"rows": "2"}))
    assert data.info["rows"] == {"train": 10000, "test": 10000, "transfer": 25488}
    part = data.part("train", "students")
    first = json.loads((news / "dev.json").read_text(encoding="utf-8").splitlines()[0])
    assert part.rows()[0]["text"] == first["sentence"].replace("，", ",")
    assert data.labels[part.labels[0]] == first["label"]
    loaded = AutoTokenizer.from_pretrained(data.tokenizer_path("students"))
    tokens = loaded.convert_ids_to_tokens(part.tokens[: part.lengths[0]].tolist())
    assert "".join(tokens) == part.rows()[0]["text"]
