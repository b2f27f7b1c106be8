"""The stage on tag files: pieces, tags and tokens agree with the files, in every part and after every way to read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seqeval.scheme import IOBES, Tokens

from dtrain.data import EncodedSplit, PreparedData, encode_documents
from dtrain.data.characters import CharacterEncoder
from dtrain.data.normalize import CharacterNormalizer
from dtrain.data.vocabularies import load_tokenizer
from dtrain.errors import InputError
from dtrain.models import build
from dtrain.plan import Plan
from dtrain.recipe.architectures.taggers import TaggerSpec
from dtrain.recipe.data import Normalization
from dtrain.recipe.schema import Recipe
from dtrain.runfolder import RunFolder
from dtrain.runtime.distributed import World
from dtrain.tasks.answers import Texts
from dtrain.tasks.tagging.answers import Spans
from dtrain.tasks.tagging.task import tag_part
from dtrain.training.workers import Workers

Prepare = Callable[..., RunFolder]
TAGGER = {"name": "crf", "model": {"type": "tagger"}}
IDCNN = {"name": "cnn", "model": {"type": "idcnn"}}
NEZHA = {"name": "big", "model": {"type": "tagger", "encoder": {"type": "nezha", "size": "tiny"}}}
LONG = "張三住在北京。李四住在New York，他\u200b說：Ａ！然後沒有了"


@pytest.fixture
def section(tmp_path: Path) -> dict[str, Any]:
    """Training documents in JSON, of which one is long; validation with tags; unlabelled test and transfer."""
    rows = [{"text": "張三", "label": {"name": {"張三": [[0, 1]]}}}] * 3
    rows += [
        {"text": LONG, "label": {"name": {"張三": [[0, 1]], "李四": [[7, 8]]}, "place": {"北京": [[4, 5]], "New York": [[11, 18]]}}},
        {"text": "", "label": {}},
        {"text": "無", "label": {}},
    ]  # fmt: skip
    (tmp_path / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "valid.conll").write_text("张 B-name\n三 E-name\n\n去 O\nNew B-place\nYork E-place\n", encoding="utf-8")
    (tmp_path / "test.conll").write_text("张\n三\n", encoding="utf-8")
    (tmp_path / "more.txt").write_text("一二三\n\n四五六七八九十。一二三四五\n", encoding="utf-8")
    files = {"train": "train.json", "valid": "valid.conll", "test": "test.conll", "transfer": "more.txt"}
    return {
        "task": "tagging",
        **{part: str(tmp_path / name) for part, name in files.items()},
        "vocabulary": {"min_count": 1},
        "max_length": 12,
    }


def test_pieces_and_tags(
    prepare_run: Prepare, section: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = PreparedData.open(prepare_run(section, teachers=(NEZHA,), students=(TAGGER, IDCNN)))
    told = capsys.readouterr()
    assert "train 8, valid 2, test 1, transfer 3 rows of 10 documents; 2 entity types, scheme bioes; big " in told.out
    assert f"warning: {tmp_path}/train.json: 1 empty text(s) left out\n" in told.err
    assert f"warning: {tmp_path}/more.txt: 1 empty text(s) left out\n" in told.err
    assert (data.types, data.scheme) == (["name", "place"], "bioes")
    assert data.labels == ["O", *(f"{letter}-{kind}" for kind in ("name", "place") for letter in "BIES")]
    rows = data.rows("train")
    assert rows["text"][:3] == ["張三"] * 3
    assert "".join(rows["text"][3:7]) == LONG
    assert rows["text"][3:8] == ["張三住在北京。", "李四住在", "New York，他", "\u200b說：Ａ！然後沒有了", "無"]
    assert rows["start"][:] == [0, 0, 0, 0, 7, 11, 21, 0]
    assert rows["document"][:] == [0, 1, 2, 3, 3, 3, 3, 4]
    assert rows["line"][:] == [1, 2, 3, 4, 4, 4, 4, 6]
    named = [[data.labels[tag] for tag in tags] for tags in rows["tags"][3:6]]
    assert named[0] == ["B-name", "E-name", "O", "O", "B-place", "E-place", "O"]
    assert named[1] == ["B-name", "E-name", "O", "O"]
    assert named[2] == ["B-place", *["I-place"] * 6, "E-place", "O", "O"]
    assert data.rows("valid")["text"][:] == ["张三", "去New York"]
    assert [data.labels[tag] for tag in data.rows("valid")["tags"][1]][1:3] == ["B-place", "I-place"]
    assert data.rows("test")["tags"][:] == [[-1, -1]]
    assert data.rows("transfer")["text"][:] == ["一二三", "四五六七八九十。", "一二三四五"]
    assert data.rows("transfer")["document"][:] == [8, 9, 9]
    assert [label for part in data.parts for label in data.rows(part)["label"][:]] == [0] * 10 + [-1] * 4
    ids = [i for part in data.parts for i in data.rows(part)["id"][:]]
    assert ids == list(range(14))
    assert data.info["label_counts"] == {"train": {"name": 5, "place": 2}, "valid": {"name": 1, "place": 1}}
    assert data.info["also_in_train"] == {"valid": 0, "test": 0}


def test_tokens_are_the_characters(prepare_run: Prepare, section: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    data = PreparedData.open(prepare_run(section, teachers=(NEZHA,), students=(TAGGER,)))
    normalizer = CharacterNormalizer(Normalization())
    for name, specials in (("students", 0), ("big", 2)):
        tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_path(name))
        for part in data.parts:
            found = data.part(part, name)
            texts = data.rows(part)["text"][:]
            assert found.specials == specials
            assert found.characters.tolist() == [len(text) for text in texts]
            assert found.characters.dtype == np.int32
            assert found.lengths.max() <= 12
            seen = "".join(normalizer(text) for p in ("train", "transfer") for text in data.rows(p)["text"][:])
            for text, ids in zip(texts, np.split(found.tokens, found.offsets[1:-1]), strict=True):
                characters = [c if c in seen and c != "\0" else "[UNK]" for c in normalizer(text)]
                around = (["[CLS]"], ["[SEP]"]) if specials else ([], [])
                assert tokenizer.convert_ids_to_tokens(ids.tolist()) == [*around[0], *characters, *around[1]]


@pytest.mark.parametrize("copied", [1 << 26, 0])  # bytes: tags read into memory, or left in their files
def test_collate_tags_against_a_plain_loop(
    prepare_run: Prepare, section: dict[str, Any], copied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtrain.data.flat.COPIED_BYTES", copied)
    data = PreparedData.open(prepare_run(section, teachers=(NEZHA,), students=(TAGGER,)))
    for name in ("students", "big"):
        parts = [data.part(part, name) for part in data.parts]
        for part in [*parts, EncodedSplit.concat(parts)]:
            rows = part.rows()
            assert part.documents is not None
            assert part.starts is not None
            assert part.documents.tolist() == rows["document"][:]
            assert part.starts.tolist() == rows["start"][:]
            for index in (np.arange(len(part)), np.array([len(part) - 1, 0]), np.array([0])):
                tags = part.collate_tags(index)
                wanted = [rows["tags"][int(i)] for i in index]
                longest = max(map(len, wanted))
                assert tags.tolist() == [row + [-1] * (longest - len(row)) for row in wanted]
                assert tags.dtype == torch.int64
                assert part.collate(index)["input_ids"].shape == (len(index), longest + part.specials)
        assert parts[0].collate_tags(np.array([], dtype=np.int64)).shape == (0, 0)


def encoded_alone(tokenizer: Path, texts: list[str]) -> EncodedSplit:
    loaded = load_tokenizer(tokenizer)
    return encode_documents(CharacterEncoder(loaded, Normalization()), loaded.pad_token_id, texts, max_length=12)


def test_new_documents_are_cut_and_encoded_alike(prepare_run: Prepare, section: dict[str, Any]) -> None:
    data = PreparedData.open(prepare_run(section, teachers=(NEZHA,), students=(TAGGER,)))
    texts = ["", "一二三", "四五六七八九十。一二三四五", LONG]
    for name in ("students", "big"):
        part = encoded_alone(data.tokenizer_path(name), texts)
        stored = data.part("transfer", name)
        specials = stored.specials
        assert (part.specials, part.pad_id, part.tags) == (specials, stored.pad_id, None)
        assert part.documents is not None
        assert part.starts is not None
        assert part.documents.tolist()[:4] == [0, 1, 2, 2]
        assert part.starts.tolist()[:4] == [0, 0, 0, 8]
        assert part.characters.tolist()[:4] == [1, 3, 8, 5]
        assert part.tokens[1 + specials : 1 + specials + len(stored.tokens)].tolist() == stored.tokens.tolist()
        assert "".join(part.rows()["text"][4:]) == LONG
        with pytest.raises(ValueError, match="no tags"):
            part.collate_tags(np.array([0]))


def test_every_piece_has_whole_entities(prepare_run: Prepare, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows, wanted = [], []
    for _ in range(60):
        text = "".join(random.choice(list("甲乙丙。！a "), size=random.integers(1, 80)))
        entries: list[dict[str, Any]] = []
        position = 0
        while (start := position + int(random.integers(0, 9))) < len(text):
            end = min(start + int(random.integers(0, 14)), len(text) - 1)
            entries.append({"start": start, "end": end, "type": "xy"[int(random.integers(2))]})
            position = end + 1
        rows.append({"text": text, "label": entries})
        wanted.append([(e["start"], e["end"] + 1, e["type"]) for e in entries])
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"task": "tagging", "train": str(tmp_path / "train.jsonl"), "split": {"valid": 0}, "max_length": 16}
    data = PreparedData.open(prepare_run(section, students=(TAGGER,)))
    found: list[list[tuple[int, int, str]]] = [[] for _ in rows]
    train = data.rows("train")
    for tags, document, start in zip(train["tags"][:], train["document"][:], train["start"][:], strict=True):
        entities = Tokens([data.labels[tag] for tag in tags], IOBES).entities
        found[document] += [(start + e.start, start + e.end, e.tag) for e in entities]
    assert found == wanted
    with pytest.raises(InputError, match="raise data.max_length, or correct the entity"):
        prepare_run({**section, "max_length": 15}, students=(TAGGER,), identities={"rows": "rows-2"})


def test_scores_are_those_of_the_answers_that_a_user_gets(prepare_run: Prepare, tmp_path: Path, world: World) -> None:
    """Scored documents are cut as new text is; an entity that a cut goes through counts as missed."""
    random = np.random.default_rng(3)
    rows = []
    for _ in range(30):
        text = "".join(random.choice(list("甲乙丙丁戊。"), size=random.integers(1, 60)))
        starts = range(0, len(text) - 3, 7)
        spans = [
            {"start": i, "end": i + int(random.integers(1, 4)), "type": "xy"[int(random.integers(2))]} for i in starts
        ]
        rows.append({"text": text, "label": spans})
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "valid", "test")}
    section = {"task": "tagging", **files, "vocabulary": {"min_count": 1}, "max_length": 12}
    data = PreparedData.open(prepare_run(section, students=(TAGGER,)))
    texts = [row["text"] for row in rows]
    new = encoded_alone(data.tokenizer_path("students"), texts)
    torch.manual_seed(1)
    for constrain in (False, True):
        spec = TaggerSpec(type="tagger", embedding=6, lstm=4, dropout=0.0, constrain=constrain)
        model = build(spec, vocabulary=data.vocabulary("students"), labels=data.labels, pad_id=data.pad_id("students"))
        with torch.no_grad():
            for parameter in model.parameters():  # far from indifferent, so that entities come out
                parameter.mul_(4)
        answers = Spans().find(model, new, Texts([], texts, [], []), Workers.of(world, "fp32"))
        gold = {
            (i, span["start"], span["end"] + 1, span["type"]) for i, row in enumerate(rows) for span in row["label"]
        }
        found = {(i, a["start"], a["end"], a["type"]) for i, answer in enumerate(answers) for a in answer}
        for name in ("valid", "test"):
            part = data.part(name, "students")
            assert part.tokens.tolist() == new.tokens.tolist()
            assert part.offsets.tolist() == new.offsets.tolist()
            tagged = tag_part(model, part, Workers.of(world, "fp32"), 2)
            assert tagged.entities.sum(0).tolist() == [len(gold & found), len(found), len(gold)]
            assert 0 < tagged.loss < 1e3
        assert found


def test_worker_processes_change_nothing(
    prepare_run: Prepare, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dtrain.data import write

    alone = PreparedData.open(prepare_run(section, students=(TAGGER,))).part("train", "students")
    monkeypatch.setattr(write, "WORKER_BYTES", 0)
    again = prepare_run({**section, "workers": 2}, students=(TAGGER,), identities={"rows": "rows-2", "students": "s-2"})
    shared = PreparedData.open(again).part("train", "students")
    assert shared.tokens.tolist() == alone.tokens.tolist()


def test_the_plan_knows_what_decides_rows_and_tokens(section: dict[str, Any]) -> None:
    def plan(changes: dict[str, Any], task: str = "tagging") -> Plan:
        members = {"teachers": [NEZHA], "students": [TAGGER]}
        return Plan(Recipe.model_validate({"name": "run", "data": {**section, "task": task, **changes}, **members}))

    before = plan({})
    longer, rarer = plan({"max_length": 20}), plan({"vocabulary": {"min_count": 2}})
    assert longer.data != before.data  # rows are pieces
    assert rarer.data == before.data
    assert rarer.tokenizer("big") != before.tokenizer("big")
    assert rarer.tokenizer("students") != before.tokenizer("students")
    assert plan({"scheme": "bmes"}).data != before.data


def test_resume_is_prepared_as_counted(prepare_run: Prepare, data_folder: Path) -> None:
    files = {"train": "train", "valid": "dev", "test": "test"}
    section = {part: str(data_folder / "resume_ner" / f"{name}.char.bmes") for part, name in files.items()}
    folder = prepare_run({"task": "tagging", "max_length": 256, **section}, teachers=(NEZHA,), students=(TAGGER,))
    data = PreparedData.open(folder)
    assert data.info["rows"] == {"train": 3821, "valid": 463, "test": 477}
    assert data.info["also_in_train"]["test"] == 5
    # Lines with E- or S- in the files, by grep: each ends an entity there.
    whole = {part: sum(counts.values()) for part, counts in data.info["label_counts"].items()}
    assert whole["valid"] == 1497
    assert whole["test"] == 1630
    part = data.part("train", "big")
    assert part.tags is not None
    names = [data.labels[tag] for tag in part.tags]
    assert sum(name[0] in "ES" for name in names) == whole["train"]
