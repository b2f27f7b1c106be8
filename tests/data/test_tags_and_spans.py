"""Tags of mixed schemes and spans whose ends mean one thing or the other: read as most of the file means, or refused.

Where the small inputs that were misread are here (../shared/cases), they are read, too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtrain.data.corpus import Corpus
from dtrain.data.schemes import SCHEMES, Span, write_tags
from dtrain.errors import InputError
from dtrain.recipe.data import Data
from dtrain.tasks.corpus import check_sources
from tests.conftest import ROOT

CASES = ROOT.parent / "shared" / "cases"
Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(name: str, content: str) -> str:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return str(tmp_path / name)

    return to_file


@pytest.fixture
def cases() -> Path:
    if not CASES.is_dir():
        pytest.skip("the small inputs are not here (../shared/cases from the repository's root)")
    return CASES


def read(train: str, **keys: Any) -> Corpus:
    return check_sources(Data.model_validate({"task": "tagging", "train": train, "split": {"valid": 0}, **keys}))


def refused(train: str, **keys: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(train, **keys)
    (problem,) = caught.value.problems
    return problem


def tagged(text: str, spans: list[Span], scheme: str) -> str:
    tags = write_tags(spans, len(text), scheme)
    return "".join(f"{character} {tag}\n" for character, tag in zip(text, tags, strict=True)) + "\n"


TEXT, ENTITIES = "张三在北京", [Span(0, 2, "PER"), Span(3, 5, "LOC")]

# --- schemes ----------------------------------------------------------------------------------------


def test_a_stray_tag_is_named_and_costs_its_entity_alone(write: Write) -> None:
    train = write("t.bio", tagged(TEXT, ENTITIES, "bio") * 100 + "王 B-PER\n五 E-PER\n")
    corpus = read(train)
    assert corpus.scheme == "bio"
    assert corpus.parts["train"].spans == [ENTITIES] * 100 + [[]]
    assert corpus.remarks == [
        f"{train}:602: 'E-PER'".join(
            [
                f"{train}: 1 tag(s) do not belong to scheme bio, which fits the others (first: ",
                "); they and the incomplete entities around them, 2 tag(s) in all, are read as O",
            ]
        )
    ]
    assert ":602: tag 'E-PER' is not in scheme bio" in refused(train, scheme="bio")  # what is named is meant


def test_a_type_that_only_another_file_has_is_offered_data_labels(write: Write) -> None:
    train = write("t.bio", tagged(TEXT, ENTITIES, "bio") * 9)
    test = write("v.bio", tagged("李四去", [Span(0, 2, "NAME")], "bio") * 3)
    problem = refused(train, test=test)
    assert "v.bio:1: entity '李四': type 'NAME' does not occur in training (allowed: LOC, PER)" in problem
    assert problem.endswith("list all of them in data.labels (2 more like it)")
    assert read(train, test=test, labels=["LOC", "NAME", "PER"]).types == ["LOC", "NAME", "PER"]


def test_files_of_two_schemes_are_refused_with_both(write: Write) -> None:
    train, test = write("t.bio", tagged(TEXT, ENTITIES, "bio") * 9), write("v.bio", tagged(TEXT, ENTITIES, "bioes") * 9)
    assert refused(train, test=test) == (
        f"data.scheme: {test} is in scheme bioes, but {train} is in bio, in which {test}:2: 'E-PER' is part of no "
        "complete entity; convert one of the files"
    )
    more = write("w.bio", tagged(TEXT, ENTITIES, "bioes") * 99)
    problem = refused(train, test=more)
    assert problem.startswith(
        f"data.scheme: {train} is in scheme bio, but {more} is in bioes, in which {train}:1: 'B-PER'"
    )


def test_a_file_of_two_schemes_is_refused(write: Write) -> None:
    mixed = write("t.bio", tagged(TEXT, ENTITIES, "bio") * 9 + tagged(TEXT, ENTITIES, "bioes") * 2)
    problem = refused(mixed)
    assert (
        "8 of 44 tags are part of no complete entity in bio, the scheme that fits best, and would be read as O"
        in problem
    )
    assert f"({mixed}:56: 'E-PER'); correct the tags, or set data.scheme" in problem


def test_the_stray_tags_of_the_cases(cases: Path) -> None:
    corpus = read(str(cases / "stray-tag" / "stray.bio"))
    assert corpus.scheme == "bio"
    assert corpus.types == ["LOC", "PER"]
    assert sum(len(spans or ()) for spans in corpus.parts["train"].spans) == 800
    assert "stray.bio:2402: 'E-PER'" in corpus.remarks[0]
    corpus = read(str(cases / "stray-tag" / "mixed.bio"))
    assert corpus.scheme == "bio"
    assert sum(len(spans or ()) for spans in corpus.parts["train"].spans) == 40
    assert "mixed.bio:122: 'E-PER'" in corpus.remarks[0]


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, list[Span]]:
    """A text, and entities in it of which the next may begin where one ends."""
    spans, position = [], 0
    for gap, length, kind in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from("XY")), min_size=1, max_size=3)
    ):
        spans.append(Span(position + gap, position + gap + length, kind))
        position += gap + length
    return "字" * position, spans


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(documents(), st.sampled_from(sorted(SCHEMES))), min_size=1, max_size=12))
def test_any_mix_of_schemes_is_read_as_most_of_it_means_or_refused(
    mixed: list[tuple[tuple[str, list[Span]], str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.bio"
        path.write_text("".join(tagged(text, spans, scheme) for (text, spans), scheme in mixed), encoding="utf-8")
        try:
            corpus = read(str(path))
        except InputError as error:
            assert len(error.problems) == 1, error.problems
            assert len({scheme for _, scheme in mixed}) > 1
            return
    found = [set(spans or ()) for spans in corpus.parts["train"].spans]
    for spans, ((_, meant), scheme) in zip(found, mixed, strict=True):
        assert scheme != corpus.scheme or spans == set(meant)
    # Every entity that was not read as it was meant has cost a tag, and these are few.
    missed = sum(len(set(meant) - spans) for spans, ((_, meant), _) in zip(found, mixed, strict=True))
    tags = sum(span.end - span.start for (_, meant), _ in mixed for span in meant)
    lost = tags - sum(span.end - span.start for spans in found for span in spans)
    assert missed <= lost <= tags / 10


# --- spans ------------------------------------------------------------------------------------------


def row(text: str, *spans: tuple[int, int, str] | tuple[int, int, str, str]) -> str:
    entries = [dict(zip(("start", "end", "type", "text"), span, strict=False)) for span in spans]
    return json.dumps({"text": text, "label": entries}, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("telling", "span_end"),
    [
        (row("张三", (0, 1, "x", "张三")), "inclusive"),
        (row("张三", (0, 2, "x", "张三")), "exclusive"),
        (row("张三", (0, 2, "x")), "exclusive"),  # an end equal to the text's length
        (row("张三李四王五", (0, 2, "x"), (2, 4, "x")), "exclusive"),  # spans that touch
        (row("张三李四", (2, 2, "x")), "inclusive"),  # a span of one character
        (row("张三李四王五", (0, 3, "x"), (1, 3, "x")), None),  # one inside the other
        (row("张三李四王五", (0, 3, "x")), None),
    ],
)
def test_what_ends_are_is_told_by_the_data(write: Write, telling: str, span_end: str | None) -> None:
    train = write("t.jsonl", row("北京大学很好", (0, 3, "x")) + telling)
    corpus = read(train)
    assert corpus.span_end == (span_end or "inclusive")
    spans = corpus.parts["train"].spans[0]
    assert spans == [Span(0, 3 if span_end == "exclusive" else 4, "x")]
    remarks = [remark for remark in corpus.remarks if "span end" in remark]
    if span_end == "exclusive":
        assert remarks[0].startswith(f"{train}:2: span ends are read as exclusive")
    elif span_end is None:
        assert remarks[0].startswith(f"{train}:1: nothing tells whether span ends are inclusive or exclusive")
        assert "the first span as '北京大学': set data.columns.span_end" in remarks[0]
    else:
        assert remarks == []


@pytest.mark.parametrize("span_end", ["inclusive", "exclusive"])
def test_the_recipe_says_what_ends_are(write: Write, span_end: str) -> None:
    corpus = read(write("t.jsonl", row("北京大学很好", (0, 3, "x"))), columns={"span_end": span_end})
    assert corpus.parts["train"].spans == [[Span(0, 4 - (span_end == "exclusive"), "x")]]
    assert (corpus.span_end, corpus.remarks) == (span_end, [])


def test_ends_against_the_recipe_or_the_rest_are_refused(write: Write) -> None:
    train = write("t.jsonl", row("张三去", (0, 1, "x", "张三")) * 2 + row("张三去", (0, 2, "x", "张三")) * 3)
    assert "t.jsonl:1: span [0, 1] (x) is '张' in the text, not '张三'; its end must be the place after" in refused(
        train
    )
    problem = refused(train, columns={"span_end": "inclusive"})
    assert "t.jsonl:3: span [0, 2] (x) is '张三去' in the text, not '张三'; its end must be the place of its" in problem
    assert problem.endswith("(2 more like it)")
    assert "[1, 1] (x) is not within the text (0 to 3, end excluded)" in refused(
        write("e.jsonl", row("张三去", (1, 1, "x"))), columns={"span_end": "exclusive"}
    )


def test_the_same_span_twice_is_one_entity(write: Write) -> None:
    train = write("t.jsonl", row("张三去", (0, 1, "x"), (2, 2, "y"), (0, 1, "x")))
    corpus = read(train)
    assert corpus.parts["train"].spans == [[Span(0, 2, "x"), Span(2, 3, "y")]]
    assert corpus.remarks == [f"{train}: 1 span(s) given twice are one entity each ({train}:1: '张三' (x))"]
    assert "spans overlap" in refused(write("u.jsonl", row("张三去", (0, 1, "x"), (0, 1, "y"), (2, 2, "y"))))


def test_a_key_twice_in_spans_is_refused(write: Write) -> None:
    label = '{"x": {"张": [[0, 0]]}, "x": {"三": [[1, 1]]}}'
    problem = refused(write("t.jsonl", f'{{"text": "张三", "label": {label}}}\n'))
    assert "type 'x' must hold an object of surfaces, found different values: the key is given twice" in problem


def test_the_spans_of_the_cases(cases: Path) -> None:
    exclusive = str(cases / "span-ends" / "exclusive.jsonl")
    assert "data.columns.span_end" in read(exclusive).remarks[0]
    corpus = read(exclusive, columns={"span_end": "exclusive"})
    assert corpus.parts["train"].spans == [[Span(0, 6, "ORG"), Span(9, 13, "ORG")]] * 20
    remarks = read(str(cases / "span-ends" / "nested.jsonl")).remarks
    assert any("2 span(s) inside another left out" in remark for remark in remarks)
    corpus = read(str(cases / "span-ends" / "twice.jsonl"))
    assert corpus.parts["train"].spans[-1] == [Span(0, 6, "ORG")]
    assert any("1 span(s) given twice" in remark for remark in corpus.remarks)
