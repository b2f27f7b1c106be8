"""Pairs of texts against a plain re-telling of the rule, their statistics, and who may draw them; every token is one of
a kind, so that a row tells where in the corpus it is from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dtrain.data.vocabularies import load_tokenizer
from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.pretraining import prepare
from dtrain.recipe.corpus import MaskingSpec
from dtrain.recipe.schema import Recipe
from dtrain.runfolder import RunFolder
from dtrain.tasks.masked_lm.masking import MASKABLE, OTHER, PIECE_START, SECOND, SENTENCE, WORD, WORD_START, Masker
from dtrain.tasks.masked_lm.packing import Documents
from dtrain.tasks.masked_lm.pairs import PairedRows, write_pairs

CLS, SEP, FIRST = 2, 3, 10
LENGTH = 24

Load = Callable[..., Recipe]


class Corpus:
    """Documents of 1 to 7 sentences of 1 to 9 tokens in words of 1 to 3, some documents empty.

    The lists are by token: token FIRST + n is entry n.
    """

    def __init__(self, count: int = 300, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.document: list[int] = []
        self.word: list[int] = []
        self.sentence: list[int] = []
        self.sizes: list[int] = []
        words = sentences = 0
        for number in range(count):
            before = len(self.document)
            for _ in range(int(random.integers(0, 8)) if number % 11 else 0):
                sentences += 1
                tokens = 0
                while tokens == 0 or random.random() < 0.6:
                    words += 1
                    size = int(random.integers(1, 4))
                    tokens += size
                    self.document += [number] * size
                    self.word += [words] * size
                    self.sentence += [sentences] * size
            self.sizes.append(len(self.document) - before)

    def begins(self, kind: list[int], n: int) -> bool:
        return n == 0 or kind[n] != kind[n - 1]

    def follows(self, n: int) -> bool:
        """Whether a sentence begins here that another one of its document precedes."""
        return n > 0 and self.begins(self.sentence, n) and self.document[n] == self.document[n - 1]

    def stretches(self, *at: int) -> list[Documents]:
        """The documents, cut into stretches before those of these numbers."""
        flags = [
            self.begins(self.word, n) * WORD + self.begins(self.sentence, n) * SENTENCE for n in range(sum(self.sizes))
        ]
        tokens = FIRST + np.arange(len(flags), dtype=np.int32)
        ends = np.cumsum([0, *self.sizes])
        found = []
        for low, high in zip((0, *at), (*at, len(self.sizes)), strict=True):
            inside = slice(ends[low], ends[high])
            found.append((tokens[inside], np.array(flags, np.uint8)[inside], ends[low : high + 1] - ends[low]))
        return found

    def stream(self) -> list[int]:
        """Its tokens, a [SEP] behind every document that has any."""
        found: list[int] = []
        for n in range(len(self.document)):
            found.append(FIRST + n)
            if n + 1 == len(self.document) or self.document[n + 1] != self.document[n]:
                found.append(SEP)
        return found


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


@pytest.fixture(scope="module")
def folder(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "train"
    write_pairs(corpus.stretches(), LENGTH, SEP, folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> PairedRows:
    return PairedRows.open(folder, 5, CLS, SEP)


def texts(row: np.ndarray, kinds: np.ndarray) -> tuple[list[int], list[int]]:
    """The two texts of a row as numbers of tokens in the corpus, -1 for [SEP] inside; the row's form is checked."""
    second = (kinds & SECOND) > 0
    middle = int(np.argmax(second)) - 1
    assert row[0] == CLS and row[middle] == SEP and row[-1] == SEP
    assert second[middle + 1 :].all() and not second[: middle + 1].any()
    a, b = row[1:middle], row[middle + 1 : -1]
    assert len(a) and len(b) and len(row) == LENGTH
    return [[int(t) - FIRST if t != SEP else -1 for t in text] for text in (a, b)]  # type: ignore[return-value]


def documents_of(corpus: Corpus, text: list[int]) -> set[int]:
    return {corpus.document[n] for n in text if n >= 0}


def test_rows_are_those_of_the_plain_rule(corpus: Corpus, rows: PairedRows) -> None:
    stream = [token - FIRST if token != SEP else -1 for token in corpus.stream()]
    where = {n: place for place, n in enumerate(stream) if n >= 0}
    room = LENGTH - 3
    # The rows of the stream, but the last, in which a sentence follows another.
    whole = [stream[start : start + room] for start in range(0, len(stream) - room + 1, room)]
    able = [row for row in whole[:-1] if any(n >= 0 and corpus.follows(n) for n in row[1:])]
    assert 0 < len(able) < len(whole) - 1 and len(rows) == len(able)
    for epoch in range(3):
        tokens, kinds = rows.take(np.arange(len(rows)), epoch)
        assert tokens.dtype == np.int32 and kinds.dtype == np.uint8
        for number, (row, kind) in enumerate(zip(tokens, kinds.astype(int), strict=True)):
            a, b = texts(row, kind)
            assert kind[0] & ~OTHER == PIECE_START
            assert able[number][: len(a)] == a
            assert b[0] >= 0 and corpus.follows(b[0])
            assert stream[where[b[0]] :][: len(b)] == b  # as the corpus has it
            if kind[0] & OTHER:
                assert documents_of(corpus, able[number]).isdisjoint(documents_of(corpus, b))
            else:
                assert able[number][len(a) :] == b  # exactly what follows, of A's last document
                assert corpus.document[b[0]] == corpus.document[a[-1]]
            for text, at in ((a, 1), (b, len(a) + 2)):
                for place, n in enumerate(text):
                    word = [
                        m
                        for m in (range(n - 3, n + 4) if n >= 0 else ())
                        if 0 <= m < len(corpus.word) and corpus.word[m] == corpus.word[n]
                    ]
                    maskable = n >= 0 and set(word) <= set(text)
                    expected = MASKABLE * maskable + WORD_START * (maskable and n == word[0])
                    assert kind[at + place] & ~SECOND == expected, (number, place)


def test_half_of_the_rows_are_of_other_documents_and_every_draw_is_fair(rows: PairedRows) -> None:
    index = np.arange(len(rows))
    kinds = [rows.take(index, epoch)[1] for epoch in range(60)]
    other = np.array([(k[:, 0] & OTHER) > 0 for k in kinds])
    assert other.mean() == pytest.approx(0.5, abs=3.3 * 0.5 / other.size**0.5)
    shares = other.mean(axis=0)  # each row is both, 60 draws of a fair coin
    assert shares.min() > 0.5 - 4.5 * 0.0645 and shares.max() < 0.5 + 4.5 * 0.0645
    # What comes second says nothing by its length: it is divided before the draw.
    lengths = np.array([((k & SECOND) > 0).sum(axis=1) for k in kinds])
    assert lengths[other].mean() == pytest.approx(lengths[~other].mean(), abs=4 * lengths.std() * 2 / other.size**0.5)


def test_partners_are_all_other_rows_of_other_documents(corpus: Corpus, rows: PairedRows) -> None:
    """By brute force over all pairs of rows, and every one of them as often as the others."""
    stream = [token - FIRST if token != SEP else -1 for token in corpus.stream()]
    room = LENGTH - 3
    index = np.arange(len(rows))
    # A row's text, and where a B that begins in it may reach: to the end of the next one.
    own, reached = ([documents_of(corpus, stream[n * room : (n + k) * room]) for n in rows.numbers] for k in (1, 2))
    near = [{n for n in index if own[row] & reached[n]} for row in index]
    drawn = np.array([rows._partners(index, epoch) for epoch in range(2000)])
    assert all(near[row].isdisjoint(drawn[:, row].tolist()) and row in near[row] for row in index)
    for row in (0, len(rows) // 2, len(rows) - 1):
        counts = np.bincount(drawn[:, row], minlength=len(rows))
        expected = 2000 / (len(rows) - len(near[row]))
        square = ((counts[[n for n in index if n not in near[row]]] - expected) ** 2 / expected).sum()
        freedom = len(rows) - len(near[row]) - 1
        assert abs(square - freedom) < 4 * (2 * freedom) ** 0.5  # chi-squared


def test_a_pair_depends_on_seed_epoch_and_row_alone(rows: PairedRows, folder: Path) -> None:
    """Whatever rows it is read with: so ranks, micro-batches, workers and restarts change nothing."""
    index = np.arange(len(rows))
    tokens, kinds = rows.take(index, 4)
    order = np.random.default_rng(1).permutation(len(rows))
    again = PairedRows.open(folder, 5, CLS, SEP)
    for world in (2, 3):
        for rank in range(world):
            mine = order[rank::world]
            for found, expected in zip(again.take(mine, 4), (tokens, kinds), strict=True):
                assert np.array_equal(found, expected[mine])
    for other in (rows.take(index, 5), PairedRows.open(folder, 6, CLS, SEP).take(index, 4)):
        assert ((other[1][:, 0] ^ kinds[:, 0]) & OTHER > 0).mean() == pytest.approx(0.5, abs=0.2)
        assert 0.05 < (other[0] == tokens).all(axis=1).mean() < 0.5  # half of a quarter, times the same division


def test_how_documents_are_cut_into_stretches_changes_nothing(corpus: Corpus, rows: PairedRows, tmp_path: Path) -> None:
    write_pairs(corpus.stretches(1, 2, 7, 7, 60, 201), LENGTH, SEP, tmp_path / "train")
    other = PairedRows.open(tmp_path / "train", 5, CLS, SEP)
    assert len(other) == len(rows)
    for a, b in zip(other.take(np.arange(len(rows)), 1), rows.take(np.arange(len(rows)), 1), strict=True):
        assert np.array_equal(a, b)


def test_masks_leave_special_tokens_and_parts_of_words_alone(corpus: Corpus, rows: PairedRows) -> None:
    index = np.arange(len(rows))
    masker = Masker(MaskingSpec(share=0.3, ngram=2), 1, 4, np.arange(FIRST, 99))
    taken = 0
    for epoch in range(5):
        tokens, kinds = rows.take(index, epoch)
        chosen = masker.choose(kinds, index, epoch)
        assert not chosen[tokens < FIRST].any()
        for row, mask in zip(tokens, chosen, strict=True):
            words = {corpus.word[t - FIRST] for t in row[mask]}
            inside = [t for t in row if t >= FIRST and corpus.word[t - FIRST] in words]
            assert len(inside) == mask.sum() == sum(corpus.word.count(word) for word in words)
            taken += len(inside)
    assert taken > 1000


# --- from files ----------------------------------------------------------------------------------------


def prepared(recipe: Recipe) -> RunFolder:
    plan = Plan(recipe)
    prepare.prepare_corpus(recipe, plan.folder, plan.corpus)
    return plan.folder


def more_books(text_files: Path) -> str:
    """30 documents of four lines."""
    books = [[f"第{chr(0x4E00 + 4 * n + k)}场比赛很好看" for k in range(4)] for n in range(30)]
    path = text_files / "more.txt"
    path.write_text("\n\n".join("\n".join(book) for book in books) + "\n", encoding="utf-8")
    return str(path)


def test_prepared_pairs_are_the_same_however_they_are_packed(
    recipe_of: Load, text_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tokens that are the same for any number of workers, which test_prepare_corpus.py shows."""
    changes = {"pretrain": {"next_sentence": True}, "corpus": {"sources": [more_books(text_files)]}}
    first = prepared(recipe_of(**changes))
    monkeypatch.setattr(prepare, "STRETCH", 3)
    recipe = recipe_of(**changes, output_dir=str(text_files / "again"))
    second = prepared(recipe)
    tokenizer = load_tokenizer(first.data / "corpus" / "tokenizer")
    ids = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert recipe.pretrain is not None
    for length in (16, 32):
        for part in prepare.PARTS:
            one, other = (
                PairedRows.open(prepare.rows_folder(f, recipe.pretrain, length) / part, 1, *ids)
                for f in (first, second)
            )
            assert len(one) == len(other) > 0 and one.length == length
            for a, b in zip(*(r.take(np.arange(len(one)), 2) for r in (one, other)), strict=True):
                assert np.array_equal(a, b)
            row = tokenizer.convert_ids_to_tokens(one.take(np.arange(1), 2)[0][0].tolist())
            assert row[0] == "[CLS]" and row[-1] == "[SEP]" and "[SEP]" in row[1:-1]
    assert not (first.data / "corpus" / "rows-16").exists()


def test_text_of_which_no_pairs_can_be_made_is_told(recipe_of: Load, text_files: Path) -> None:
    lines = [f"第{chr(0x4E00 + n)}场比赛很好看" for n in range(60)]
    (text_files / "titles.txt").write_text("\n".join(lines), encoding="utf-8")
    few = {"sources": [more_books(text_files)], "held_out": 0.01}
    titles = {"sources": [{"path": str(text_files / "titles.txt"), "documents": "line"}], "held_out": 0.3}
    for corpus, told in (
        (
            titles,
            "pretrain.corpus.sources: in no row of 16 tokens does a sentence follow another one of its document",
        ),
        (few, "pretrain.corpus.held_out: a row of 16 tokens has no row of other documents to be paired with"),
    ):
        with pytest.raises(InputError) as error:
            prepared(recipe_of(pretrain={"next_sentence": True}, corpus=corpus))
        assert error.value.problems[0].startswith(told) and len(error.value.problems) == 1
        assert not (text_files / "runs" / "run" / "data" / "corpus" / "pairs-16").exists()


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ([9], "too little text to fill two rows of 16 tokens"),
        ([80], "a row of 16 tokens has no row of other documents"),
    ],
)
def test_too_few_documents_are_told(sizes: list[int], told: str, tmp_path: Path) -> None:
    tokens = FIRST + np.arange(sum(sizes), dtype=np.int32)
    flags = np.full(len(tokens), WORD, np.uint8)
    flags[::5] |= SENTENCE
    with pytest.raises(InputError, match=told):
        write_pairs([(tokens, flags, np.cumsum([0, *sizes]))], 16, SEP, tmp_path / "rows")


def test_without_the_key_rows_are_packed_as_ever(recipe_of: Load) -> None:
    corpus = prepared(recipe_of()).data / "corpus"
    assert sorted(path.name for path in corpus.iterdir() if "-" in path.name) == ["rows-16", "rows-32"]
    assert json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))["documents"] > 0
