"""From text files to packed rows: what enters, what is held out, what may not enter, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from dtrain.data.problems import Problems
from dtrain.data.vocabularies import load_tokenizer
from dtrain.errors import DtrainError, InputError, Stopped
from dtrain.plan import Plan
from dtrain.pretraining import prepare
from dtrain.pretraining.corpus import check_corpus, read_documents
from dtrain.recipe.corpus import CorpusSpec
from dtrain.recipe.schema import Recipe
from dtrain.runfolder import RunFolder
from dtrain.tasks.masked_lm.masking import MASKABLE, UNKNOWN
from dtrain.tasks.masked_lm.packing import PackedRows

Load = Callable[..., Recipe]


def prepared(recipe: Recipe) -> RunFolder:
    plan = Plan(recipe)
    prepare.prepare_corpus(recipe, plan.folder, plan.corpus)
    return plan.folder


def texts(folder: RunFolder) -> tuple[list[str], np.ndarray]:
    """Documents as the tokenizer gives them back, without blanks, and whether each is held out."""
    tokens = datasets.load_from_disk(folder.data / "corpus" / "tokens")
    tokenizer = load_tokenizer(folder.data / "corpus" / "tokenizer")
    return [joined(tokenizer, row) for row in tokens["tokens"]], np.array(tokens["held_out"])


def joined(tokenizer: Any, tokens: Any) -> str:
    """Tokens as they are written, `##` and blanks left out."""
    return "".join(token.removeprefix("##") for token in tokenizer.convert_ids_to_tokens(list(tokens)))


def documents(*sources: Any) -> list[str]:
    return list(read_documents(CorpusSpec.model_validate({"sources": list(sources)}), Problems()))


def test_documents_of_every_format(text_files: Path) -> None:
    lines = (text_files / "text.txt").read_text(encoding="utf-8").splitlines()
    books = (text_files / "books.txt").read_text(encoding="utf-8").strip().split("\n\n")
    assert documents({"path": str(text_files / "text.txt"), "documents": "line"}) == lines
    assert documents(str(text_files / "text.txt")) == ["\n".join(lines)]  # no blank line: one document
    assert documents(str(text_files / "books.txt")) == books
    rows = [json.loads(line)["text"] for line in (text_files / "rows.jsonl").open(encoding="utf-8")]
    assert documents(str(text_files / "rows.jsonl")) == rows
    table = text_files / "titles.tsv"
    table.write_text("".join(f"{row}\t{n}\n" for n, row in enumerate(rows)), encoding="utf-8")
    assert documents({"path": str(table), "header": False, "column": 0}) == rows
    datasets.Dataset.from_dict({"body": rows}).save_to_disk(text_files / "saved")
    assert documents({"path": str(text_files / "saved"), "column": "body"}) == rows


def test_a_folder_is_every_text_file_in_it_in_order(text_files: Path) -> None:
    folder = text_files / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.txt").write_text("二\n\n三\n", encoding="utf-8")
    (folder / "a.jsonl").write_text('{"text": "一"}\n', encoding="utf-8")
    (folder / "inner" / "c.txt").write_text("四\n", encoding="utf-8")
    (folder / "notes.md").write_text("no text of ours", encoding="utf-8")
    assert documents(str(folder)) == ["一", "二", "三", "四"]


def test_a_source_counts_as_often_as_it_is_repeated(text_files: Path) -> None:
    (text_files / "titles.txt").write_text("一\n二\n", encoding="utf-8")
    titles = {"path": str(text_files / "titles.txt"), "documents": "line", "repeat": 3}
    assert documents(titles, str(text_files / "books.txt"))[:7] == [
        *(["一", "二"] * 3),
        documents(str(text_files / "books.txt"))[0],
    ]


def test_rows_hold_the_text_and_nothing_else(recipe_of: Load, text_files: Path) -> None:
    folder = prepared(recipe_of())
    found, held_out = texts(folder)
    lines = (text_files / "text.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(found) == sorted(line.replace("！", "!") for line in lines)
    assert held_out.sum() == 16  # a fifth of 80
    tokenizer = load_tokenizer(folder.data / "corpus" / "tokenizer")
    whole = "".join(text for text, out in zip(found, held_out, strict=True) if not out)
    for length in (16, 32):
        rows = PackedRows.open(folder.data / "corpus" / f"rows-{length}" / "train")
        tokens, kinds = rows.take(np.arange(len(rows)))
        assert (tokens[kinds == 4] == tokenizer.cls_token_id).all()
        special = np.isin(tokens, [tokenizer.cls_token_id, tokenizer.sep_token_id])
        assert not (kinds[special] & MASKABLE).any()
        stream = joined(tokenizer, tokens.reshape(-1).tolist()).replace("[CLS]", "").replace("[SEP]", "")
        assert whole.startswith(stream)
        assert len(whole) - len(stream) < length * len("windows")  # what would not fill a row is left out
        assert tokenizer.pad_token_id not in tokens


def test_a_document_that_comes_twice_is_on_one_side(recipe_of: Load, text_files: Path) -> None:
    file = text_files / "text.txt"
    file.write_text(file.read_text(encoding="utf-8") * 3, encoding="utf-8")
    found, held_out = texts(prepared(recipe_of()))
    inside = {text for text, out in zip(found, held_out, strict=True) if out}
    assert len(inside) == 16 and held_out.sum() == 48
    assert inside.isdisjoint(text for text, out in zip(found, held_out, strict=True) if not out)


def test_excluded_rows_do_not_enter(recipe_of: Load, text_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither whole lines of text files, nor tab-separated fields, nor values of JSON objects; full-width or not."""
    lines = (text_files / "text.txt").read_text(encoding="utf-8").splitlines()
    valid = [json.loads(line)["text"] for line in (text_files / "valid.jsonl").open(encoding="utf-8")]
    with (text_files / "text.txt").open("a", encoding="utf-8") as file:
        file.write(valid[0].replace("！", "!") + "\n")  # data.valid is kept out without being named
    (text_files / "test.tsv").write_text(f"{lines[3]}\t1\nx\t{lines[5].upper()}\n", encoding="utf-8")
    (text_files / "dev.json").write_text(json.dumps({"s": lines[7], "n": 3}) + "\n", encoding="utf-8")
    exclude = [str(text_files / "test.tsv"), str(text_files / "dev.json")]
    books = {"path": str(text_files / "books.txt")}
    sources = [{"path": str(text_files / "text.txt"), "documents": "line"}, books]
    book = (text_files / "books.txt").read_text(encoding="utf-8").split("\n")[1]
    (text_files / "dev.txt").write_text(book + "\n", encoding="utf-8")
    recipe = recipe_of(corpus={"sources": sources, "exclude": [*exclude, str(text_files / "dev.txt")]})
    folder = prepared(recipe)
    info = json.loads((folder.data / "corpus" / "corpus.json").read_text(encoding="utf-8"))
    assert info["excluded_lines"] == 5
    found, _ = texts(folder)
    whole = "\n".join(found)
    for text in (lines[3], lines[5], lines[7], book, valid[0]):
        assert text.lower().replace("！", "!") not in whole
    assert lines[4].replace("！", "!") in whole

    # The assertion has eyes of its own: it fails where the filter lets something through.
    class Blind(prepare.DocumentNormalizer):
        def __init__(self, normalizer: Any, excluded: set[str]) -> None:
            super().__init__(normalizer, set())

    monkeypatch.setattr(prepare, "DocumentNormalizer", Blind)
    with pytest.raises(DtrainError, match="which is in a file that is not to be trained on"):
        prepare.prepare_corpus(recipe, RunFolder(text_files / "other"), "x")
    assert not (text_files / "other" / "data" / "corpus").exists()


def test_workers_change_nothing(recipe_of: Load, text_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(recipe_of())
    monkeypatch.setattr("dtrain.data.write.WORKER_BYTES", 0)
    monkeypatch.setattr(prepare, "STRETCH", 7)
    recipe = recipe_of(output_dir=str(text_files / "again"))
    recipe.data.workers = 2
    second = prepared(recipe)
    for length in (16, 32):
        for part in ("train", "held_out"):
            one, other = (PackedRows.open(f.data / "corpus" / f"rows-{length}" / part) for f in (first, second))
            everything = np.arange(len(one))
            assert len(one) == len(other)
            for a, b in zip(one.take(everything), other.take(everything), strict=True):
                assert np.array_equal(a, b)


class AskedOnce:
    """A StopRequest that is made at the second piece of work of every run."""

    reason = "SIGTERM"

    def __init__(self) -> None:
        self.asked = 0

    def here(self) -> bool:
        self.asked += 1
        return self.asked == 2


@pytest.mark.parametrize("pairs", [False, True])
def test_a_stopped_preparation_goes_on_where_it_was(
    recipe_of: Load, text_files: Path, monkeypatch: pytest.MonkeyPatch, pairs: bool
) -> None:
    """Stopped again and again, one piece a time: the same tokens and rows, and nothing made twice or left over."""
    corpus = {"sources": [str(text_files / "books.txt"), {"path": str(text_files / "text.txt"), "documents": "line"}]}
    section = {"next_sentence": pairs}
    monkeypatch.setattr(prepare, "STRETCH", 40)
    undisturbed = prepared(recipe_of(pretrain=section, corpus=corpus))
    monkeypatch.setattr("dtrain.pretraining.pieces.PIECE_BYTES", 500)
    made: list[str] = []
    real = prepare.Pieces.make

    def counting(self: Any, name: str, fill: Callable[[Path], None], *inputs: Any) -> Path:
        def counted(aside: Path) -> None:
            fill(aside)
            made.append(name)

        return real(self, name, counted, *inputs)

    monkeypatch.setattr(prepare.Pieces, "make", counting)
    recipe = recipe_of(pretrain=section, corpus=corpus, name="stopped")
    plan = Plan(recipe)
    stops, before = 0, -1
    while before < len(made):  # until it is stopped in the packing, of which each length is made in one go
        before = len(made)
        with pytest.raises(Stopped, match="SIGTERM"):
            prepare.prepare_corpus(recipe, plan.folder, plan.corpus, AskedOnce())  # type: ignore[arg-type]
        stops += 1
        assert not list(plan.folder.data.glob(".tmp-*"))
        if stops == 3:  # what is damaged is made again
            next(plan.folder.data.glob("corpus-*/texts-0/*.arrow")).write_bytes(b"")
            made.remove("texts-0")
            before -= 1
    assert before > 0 and (plan.folder.data / "corpus" / "tokens").is_dir()
    prepare.prepare_corpus(recipe, plan.folder, plan.corpus)
    assert stops > 10 and len(made) == len(set(made)) > 10
    for folder in (undisturbed, plan.folder):
        assert [path.name for path in folder.data.iterdir()] == ["corpus"]
    assert texts(plan.folder)[0] == texts(undisturbed)[0]
    kind = "pairs" if pairs else "rows"
    files = [path for path in (undisturbed.data / "corpus").glob(f"{kind}-*/*/*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        other = plan.folder.data / path.relative_to(undisturbed.data)
        assert other.read_bytes() == path.read_bytes(), path


def test_pieces_of_another_text_are_removed(recipe_of: Load, text_files: Path) -> None:
    recipe = recipe_of()
    plan = Plan(recipe)
    with pytest.raises(Stopped):
        prepare.prepare_corpus(recipe, plan.folder, plan.corpus, AskedOnce())  # type: ignore[arg-type]
    assert len(list(plan.folder.data.glob("corpus-*"))) == 1
    file = text_files / "text.txt"
    file.write_text(file.read_text(encoding="utf-8") + "球队比赛冠军\n", encoding="utf-8")
    again = Plan(recipe)
    with pytest.raises(Stopped):
        prepare.prepare_corpus(recipe, again.folder, again.corpus, AskedOnce())  # type: ignore[arg-type]
    assert [path.name[:15] for path in plan.folder.data.glob("corpus-*")] == [f"corpus-{again.corpus[:8]}"]
    left = next(plan.folder.data.glob("corpus-*"))
    prepare.prepare_corpus(recipe, again.folder, again.corpus)
    left.mkdir()  # as if killed between the corpus's last step and the removal
    prepare.prepare_corpus(recipe, again.folder, again.corpus)
    assert [path.name for path in plan.folder.data.iterdir()] == ["corpus"]
    shutil.rmtree(plan.folder.data)
    file.write_text(" \n", encoding="utf-8")
    with pytest.raises(InputError, match="0 different"):
        prepare.prepare_corpus(recipe, again.folder, Plan(recipe).corpus)
    assert not list(plan.folder.data.glob("corpus*"))  # nothing of bad input is kept


def test_long_documents_are_cut_at_sentences(recipe_of: Load, text_files: Path) -> None:
    folder = prepared(recipe_of(corpus={"sources": [str(text_files / "books.txt")]}))
    tokenizer = load_tokenizer(folder.data / "corpus" / "tokenizer")
    rows = PackedRows.open(folder.data / "corpus" / "rows-32" / "train")
    tokens, _ = rows.take(np.arange(len(rows)))
    stream = joined(tokenizer, tokens.reshape(-1).tolist())
    pieces = [piece.removesuffix("[SEP]") for piece in stream.split("[CLS]")[1:-1]]
    assert sum(piece[-1] in "。!" for piece in pieces) / len(pieces) > 0.9  # a few sentences are longer than a row


@pytest.mark.parametrize(
    ("corpus", "told"),
    [
        ({"sources": ["no.txt"]}, "pretrain.corpus.sources.0: no.txt: no such file"),
        ({"sources": ["{}/empty.txt"]}, "pretrain.corpus.sources.0: {}/empty.txt: the file is empty"),
        (
            {"sources": ["{}/odd.xml"]},
            "pretrain.corpus.sources.0: {}/odd.xml: the suffix .xml tells no format; set `format`",
        ),
        ({"exclude": ["gone.txt"]}, "pretrain.corpus.exclude: gone.txt: no such file"),
        ({"dictionary": "gone.txt"}, "pretrain.corpus.dictionary: gone.txt: no such file"),
    ],
)
def test_missing_files_are_told_before_anything_is_written(
    recipe_of: Load, text_files: Path, corpus: dict[str, Any], told: str
) -> None:
    (text_files / "empty.txt").touch()
    (text_files / "odd.xml").write_text("x")
    filled = json.loads(json.dumps(corpus).replace("{}", str(text_files)))
    with pytest.raises(InputError) as error:
        check_corpus(recipe_of(corpus=filled))
    assert error.value.problems == [told.replace("{}", str(text_files))]


def test_bad_rows_and_too_little_text_are_told(recipe_of: Load, text_files: Path) -> None:
    (text_files / "bad.jsonl").write_text('{"text": "好"}\n{"txt": "x"}\n{"text": 3}\n', encoding="utf-8")
    with pytest.raises(InputError) as error:
        prepared(recipe_of(corpus={"sources": [str(text_files / "bad.jsonl")]}))
    assert [line.split(": ")[0] for line in error.value.problems] == [f"{text_files}/bad.jsonl:{n}" for n in (2, 3)]
    (text_files / "one.txt").write_text("只有一行\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"pretrain.corpus.sources: 1 different document\(s\) left"):
        prepared(recipe_of(corpus={"sources": [str(text_files / "one.txt")]}))
    (text_files / "two.txt").write_text("一一一\n\n二二二\n", encoding="utf-8")
    with pytest.raises(InputError, match="too little text to fill one row of 16 tokens"):
        prepared(recipe_of(corpus={"sources": [str(text_files / "two.txt")]}))


@pytest.mark.parametrize(
    ("documents", "text", "told"),
    [
        ("blank", " \n\n", "pretrain.corpus.sources: no text in them"),
        (
            "line",
            "甲乙\n丙丁\n",
            "pretrain.corpus.sources: too little text for a vocabulary (no character comes twice)",
        ),
    ],
)
def test_a_corpus_with_nothing_to_learn(
    recipe_of: Load, text_files: Path, documents: str, text: str, told: str
) -> None:
    (text_files / "few.txt").write_text(text, encoding="utf-8")
    recipe = recipe_of(corpus={"sources": [{"path": str(text_files / "few.txt"), "documents": documents}]})
    with pytest.raises(InputError) as error:
        prepared(recipe)
    assert error.value.problems == [told]


def test_a_vocabulary_without_the_texts_words_is_told(recipe_of: Load, text_files: Path) -> None:
    """Nothing could be asked for, and the perplexity of nothing is 1."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]
    (text_files / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    model = {"type": "nezha", "size": "tiny", "hidden": 16, "heads": 2, "vocabulary": str(text_files / "vocab.txt")}
    (text_files / "chinese.txt").write_text("球队比赛\n比赛进球\n进球球队\n" * 9, encoding="utf-8")
    source = {"path": str(text_files / "chinese.txt"), "documents": "line"}
    with pytest.raises(InputError) as error:
        prepared(recipe_of(pretrain={"model": model}, corpus={"sources": [source]}))
    assert error.value.problems == [
        "pretrain.corpus.sources: no word of the training text is in the vocabulary of pretrain.model"
    ]


def test_tokens_in_unknown_words_are_counted(recipe_of: Load, text_files: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "球", "队", "。"]
    (text_files / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    model = {"type": "nezha", "size": "tiny", "hidden": 16, "heads": 2, "vocabulary": str(text_files / "vocab.txt")}
    corpus = prepared(recipe_of(pretrain={"model": model})).data / "corpus"
    saved = datasets.load_from_disk(corpus / "tokens")
    by_hand = sum(flag & UNKNOWN != 0 for row in saved["flags"] for flag in row)
    info = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
    assert 0 < info["unknown_tokens"] == by_hand < info["tokens"]


def test_long_fields_and_documents(recipe_of: Load, text_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the csv module's own bound; and what Arrow could not hold is told."""
    long = "球队比赛。" * 40_000
    (text_files / "long.csv").write_text(f'text\n"{long}"\n', encoding="utf-8")
    assert documents(str(text_files / "long.csv")) == [long]
    monkeypatch.setattr(prepare, "DOCUMENT_CHARACTERS", 100_000)
    with pytest.raises(InputError, match=r"pretrain.corpus.sources: a document of 200,000 characters \('球队"):
        prepared(recipe_of(corpus={"sources": [str(text_files / "long.csv")]}))


def test_what_is_left_of_a_document_may_be_excluded(recipe_of: Load, text_files: Path) -> None:
    """A line is left out, and the others together are a text that may not be trained on."""
    (text_files / "test.txt").write_text("甲乙丙 丁 戊己庚辛\n壬癸子丑\n", encoding="utf-8")
    (text_files / "books.txt").write_text(
        "甲乙丙 丁\n戊己庚辛\n壬癸子丑\n\n" + (text_files / "books.txt").read_text(encoding="utf-8"), encoding="utf-8"
    )
    corpus = {"sources": [str(text_files / "books.txt")], "exclude": [str(text_files / "test.txt")]}
    found, _ = texts(prepared(recipe_of(corpus=corpus)))
    assert len(found) == 6 and not any("戊" in text for text in found)


def test_a_start_with_more_tokens_than_embeddings_is_told_first(recipe_of: Load, text_files: Path) -> None:
    start = text_files / "start"
    load_tokenizer(prepared(recipe_of(name="first")).data / "corpus" / "tokenizer").save_pretrained(start)
    (start / "config.json").write_text(json.dumps({"model_type": "nezha", "vocab_size": 9}), encoding="utf-8")
    recipe = recipe_of(pretrain={"model": {"type": "nezha", "pretrained": str(start)}})
    with pytest.raises(InputError, match="has 9 token embeddings, but its tokenizer has"):
        prepared(recipe)
    assert not Plan(recipe).folder.data.exists()


def test_bad_lines_are_told_before_anything_is_written(recipe_of: Load, text_files: Path) -> None:
    (text_files / "gbk.txt").write_bytes("好\n球队\n".encode("gbk"))
    (text_files / "words.txt").write_text("三 个 词 语\n", encoding="utf-8")
    source = {"path": str(text_files / "gbk.txt"), "repeat": 3}
    recipe = recipe_of(corpus={"sources": [source], "dictionary": str(text_files / "words.txt")})
    with pytest.raises(InputError) as error:
        check_corpus(recipe)
    assert [line.split(": ")[0] for line in error.value.problems] == [
        f"{text_files}/{place}" for place in ("words.txt:1", "gbk.txt:1")
    ]
    key = "pretrain.corpus.sources.N.encoding"
    assert error.value.problems[1].endswith(f"it reads as gb18030: set {key}: gb18030 (1 more like it)")
    assert documents({"path": str(text_files / "gbk.txt"), "encoding": "gb18030"}) == ["好\n球队"]
    assert not Plan(recipe).folder.root.exists()


def test_folders_globs_and_shards_without_a_suffix(text_files: Path) -> None:
    shards = text_files / "shards"
    (shards / "AA").mkdir(parents=True)
    for name, text in (("AA/wiki_00", "甲"), ("AA/wiki_01", "乙"), (".hidden", "丙"), ("_SUCCESS", "")):
        (shards / name).write_text(text, encoding="utf-8")
    assert documents({"path": str(shards), "format": "lines"}) == ["甲", "乙"]
    assert documents({"path": str(shards / "AA" / "wiki_0[1-9]"), "format": "lines"}) == ["乙"]
    with pytest.raises(InputError, match="holds no file that ends with .txt, .text, .jsonl with text in it"):
        documents(str(shards))
    (shards / "a.txt").write_text("丁", encoding="utf-8")
    (shards / "b.jsonl").write_text('{"text": "戊"}', encoding="utf-8")
    (shards / "meta.json").write_text('{"n": 1}', encoding="utf-8")  # what lies beside the text is not text
    (shards / "README.tsv").write_text("a\tb", encoding="utf-8")
    assert documents(str(shards)) == ["丁", "戊"]
    assert documents(str(shards / "*.txt")) == ["丁"]


def test_most_of_the_documents_held_out_leaves_one(recipe_of: Load, text_files: Path) -> None:
    sources = [{"path": str(text_files / "books.txt")}]
    _, held_out = texts(prepared(recipe_of(corpus={"sources": sources, "held_out": 0.999})))
    assert held_out.sum() == len(held_out) - 1


def test_a_corpus_column_longer_than_its_offsets_reach() -> None:
    """Chunks are looked at one by one: their tokens in one array could be more than 32 bits count."""
    tokens = datasets.Dataset.from_dict({"tokens": [[1, 2, 3], [], [4]], "flags": [[1, 0, 1], [], [1]]})
    tokens = datasets.concatenate_datasets([tokens, tokens])
    assert tokens.data.column("tokens").num_chunks > 1
    assert prepare._lengths(tokens).tolist() == [3, 0, 1, 3, 0, 1]


def test_stretches_end_where_documents_are_long(recipe_of: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(recipe_of())
    tokens = datasets.load_from_disk(folder.data / "corpus" / "tokens")
    index = np.arange(3, len(tokens))
    (whole,) = prepare._stretches(tokens, index)
    monkeypatch.setattr(prepare, "STRETCH_TOKENS", 100)
    cut = list(prepare._stretches(tokens, index))
    assert len(cut) > 5 and max(len(stretch[0]) for stretch in cut) < 200
    assert np.array_equal(np.concatenate([stretch[0] for stretch in cut]), whole[0])
    assert sum(len(stretch[2]) - 1 for stretch in cut) == len(index)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "roberta"}, "pretrain.model.pretrained: {}/start: is of type 'roberta', not 'nezha'"),
        ({"model_type": "bert"}, "pretrain.model.pretrained: {}/start: is of type 'bert', not 'nezha'"),
        ("nothing", "pretrain.model.pretrained: {}/start/config.json: is not a model's configuration"),
    ],
)
def test_a_start_of_another_type_is_told(recipe_of: Load, text_files: Path, config: Any, told: str) -> None:
    (text_files / "start").mkdir()
    (text_files / "start" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    recipe = recipe_of({"model": {"type": "nezha", "pretrained": str(text_files / "start")}})
    with pytest.raises(InputError) as error:
        check_corpus(recipe)
    assert error.value.problems == [told.replace("{}", str(text_files))]


def test_a_phase_longer_than_the_start_has_positions_is_told(recipe_of: Load, text_files: Path) -> None:
    (text_files / "start").mkdir()
    config = {"model_type": "bert", "max_position_embeddings": 24}
    (text_files / "start" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    recipe = recipe_of({"model": {"type": "bert", "pretrained": str(text_files / "start")}})
    with pytest.raises(InputError, match=r"pretrain\.phases\.1\.max_length: 32 is more than the 24 positions of"):
        check_corpus(recipe)
