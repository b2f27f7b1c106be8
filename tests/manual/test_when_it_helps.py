"""The charts of the page on the gains of distillation show the table on that page."""

from tests.benchmarks.gains_chart import BAR, PAGE, PICTURE, chart, rows, with_chart


def test_bars_show_the_share_of_the_lead_that_was_recovered():
    lines = chart([("half", 90.0, 80.0, 85.0), ("none", 60.0, 50.0, 49.0), ("beyond", 70.0, 69.0, 71.0)]).splitlines()
    assert [line.count("#") for line in lines] == [BAR // 2, 0, BAR]
    assert [line.split()[-2] for line in lines] == ["50", "-10", "above"]


def test_charts_are_those_of_the_table():
    page = PAGE.read_text(encoding="utf-8")
    found = rows(page)
    assert len(found) >= 10
    assert with_chart(page) == page  # python tests/benchmarks/gains_chart.py writes it
    picture = PICTURE.read_text(encoding="utf-8")
    assert all(f">{name}<" in picture for name, *_ in found)
