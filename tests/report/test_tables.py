"""How numbers are written."""

import pytest

from dtrain.report import tables
from dtrain.report.pages import sides_in_words


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (tables.percent, 0.50678, "50.68"),
        (tables.percent, 1.0, "100.00"),
        (tables.large, 102_267_648, "102 M"),
        (tables.large, 6_612_345, "6.61 M"),
        (tables.large, 999, "999"),
        (tables.large, 999_900, "1 M"),
        (tables.large, 12_345, "12.3 k"),
        (tables.significant, 1234.5, "1,234"),
        (tables.significant, 99.96, "100"),
        (tables.significant, 0.01234, "0.0123"),
        (tables.significant, 0.0000123, "0.0000123"),
        (tables.times, 15.49, "15.5×"),
        (tables.plain, 53360, "53,360"),
        (tables.plain, 2.5, "2.50"),
    ],
)
def test_numbers(write, value, text):
    assert write(value) == text


def test_mean_and_deviation():
    assert tables.spread_text({"mean": 0.5, "std": 0.00123}) == "50.00 ± 0.12"
    assert tables.spread_text({"mean": 0.5, "std": None}) == "50.00"


def test_an_export_names_the_rows_that_it_was_compared_on():
    model = {"kind": "students", "name": "s", "bytes": 200}
    check = {"flips": 1, "rows": 9, "largest_difference": 0.5, "metric": "f1", "before": 0.75, "after": 0.5}
    entry = {"kind": "students", "model": "s", "name": "s-int8", "to": "onnx", "int8": True, "bytes": 100}
    of_test, older = {**entry, "check": {**check, "split": "test"}}, {**entry, "check": check}
    table = tables.exported({"models": [model], "exported": [of_test, older]})
    assert table.headers[-1] == "score before → after (rows)"
    assert [row[-1] for row in table.rows] == ["f1 0.7500 → 0.5000 (test)", "f1 0.7500 → 0.5000"]


def test_kinds():
    student = {"kind": "students", "teachers": []}
    assert tables.kind({"kind": "teachers"}) == "teacher"
    assert tables.kind({"kind": "teachers", "annotated_by": "t"}) == "teacher, annotations found by t"
    assert tables.kind(student) == "student, from scratch"
    assert tables.kind({**student, "teachers": ["a", "b"]}) == "student of a, b"
    assert tables.kind({**student, "teachers": ["a", "b", "c"]}) == "student of 3 teachers"


def test_who_is_scored_on_which_rows():
    en, zh = {"models": ["a", "b"], "rows": {"valid": 6, "test": 1200}}, {"models": ["c"], "rows": {}}
    told = "the side it reads: en (valid 6, test 1,200): a, b; zh (no row with a label): c. Scores on different rows"
    assert told in sides_in_words({"en": en, "zh": zh})
    assert sides_in_words({"en": en}) == sides_in_words({}) == ""


@pytest.mark.parametrize(
    ("ratio", "size", "speed"),
    [
        (15.49, "15.5× fewer", "15.5× as fast"),
        (1.04, "about as many as the teacher", "about as fast"),
        (0.96, "about as many as the teacher", "about as fast"),
        (0.5, "2× more", "2× slower"),
    ],
)
def test_a_student_beside_its_teacher(ratio, size, speed):
    assert tables.size_in_words(ratio) == size
    assert tables.speed_in_words(ratio) == speed
