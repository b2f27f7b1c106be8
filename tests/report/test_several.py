"""The report on several tasks: what stands in it of a model that is scored on some of them alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dtrain.report.several import brief, overview, table


def of_task(headline: str, **scores: dict[str, float | None]) -> dict[str, Any]:
    """The results of one task: by model, its accuracy on each part."""
    models, groups = [], []
    for name, parts in scores.items():
        both = {"kind": "students", "name": name, "parameters": 10, "bytes": 40, "teachers": [], "type": "bilstm"}
        models.append({**both, "accuracy": parts["valid"], "test": {"accuracy": parts["test"]}})
        means = {part: {"accuracy": {"mean": score, "std": None}} for part, score in parts.items()}
        groups.append({**both, "members": [name], "seeds": [1], **means["valid"], "test": means["test"]})
    best = {"teacher": None, "student": next(iter(scores))}
    results = {"task": "classification", "part": "valid", "headline": headline, "rows": {}, "annotated": [], **best}
    return {**results, "models": models, "groups": groups, "failed": [], "remarks": [], "versions": {}}


def test_a_model_without_a_score_on_a_task_has_no_mean() -> None:
    """As where no test row of a task has the side that it reads."""
    results = {
        "news": of_task("test", both={"valid": 0.5, "test": 0.25}, chinese={"valid": 0.5, "test": 0.75}),
        "mail": of_task("test", both={"valid": 0.5, "test": 0.75}, chinese={"valid": 0.5, "test": None}),
    }
    found = overview(SimpleNamespace(name="two"), results)  # type: ignore[arg-type]
    both, chinese = found["groups"]
    assert both["mean"] == {"mean": 0.5, "std": None} and "mean" not in chinese
    assert table(found).rows[1][3:] == ["75.00", "", ""]
    assert [line.partition("): ")[2] for line in brief(found)] == [
        "news 25.00 %, mail 75.00 %, mean 50.00 %",
        "news 75.00 %",
    ]


def test_groups_of_two_tasks_may_have_the_same_name() -> None:
    one = of_task("valid", **{"news1-bilstm": {"valid": 0.5, "test": None}})
    other = of_task("valid", **{"mail1-bilstm": {"valid": 0.75, "test": None}})
    for results in (one, other):
        results["groups"][0]["name"] = "bilstm"
    found = overview(SimpleNamespace(name="two"), {"news": one, "mail": other})  # type: ignore[arg-type]
    assert [(row["members"], list(row["scores"])) for row in found["groups"]] == [
        (["news1-bilstm"], ["news"]),
        (["mail1-bilstm"], ["mail"]),
    ]
