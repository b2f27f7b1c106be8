"""The manual's page of problems equals the output of the cases."""

from tests import problem_table


def test_the_manual_says_what_is_said() -> None:
    assert problem_table.page() == problem_table.PAGE.read_text(encoding="utf-8"), "run: python -m tests.problem_table"
