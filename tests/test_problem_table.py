"""The README's table of problems is what the cases say."""

from tests import problem_table


def test_the_readme_says_what_is_said() -> None:
    assert problem_table.table() == problem_table.in_readme(), "run: python -m tests.problem_table"
