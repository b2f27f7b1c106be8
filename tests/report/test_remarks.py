"""Models that learnt nothing are pointed out where they are trained and in the report."""

import pytest

from dtrain.report.remarks import remarks_on
from dtrain.runfolder import read_json, write_json
from dtrain.stages import finetune, report
from dtrain.tasks.kinds import VIEWS

COUNTS = {"bad": 97, "good": 103}


@pytest.mark.parametrize(
    ("task", "scores", "doubt"),
    [
        # 97 of 200 by the rarer class alone: 48.5 %.
        ("pairs", {"accuracy": 0.485}, "accuracy 0.4850 on the validation rows, where 'good' for every row has 0.5150"),
        ("classification", {"accuracy": 103 / 200}, "'good' for every row has 0.5150"),
        ("classification", {"accuracy": 104 / 200}, None),
        ("tagging", {"f1": 0.0}, "F1 0 on the validation rows: it finds none of their 200 entities"),
        ("tagging", {"f1": 0.01}, None),
    ],
)
def test_doubts(task, scores, doubt):
    found = VIEWS[task].doubt(scores, COUNTS)
    assert (found is None) if doubt is None else (doubt in found)
    assert VIEWS[task].doubt(scores, {}) is None


def test_a_teacher_of_one_class_is_pointed_out(run, world, capsys):
    place = run.folder.model("teachers", "bert") / "metrics.json"
    before = read_json(place)
    try:
        write_json(place, {**before, "accuracy": 0.9})
        assert remarks_on("teachers", run.plan) == []
        write_json(place, {**before, "accuracy": 0.4})
        (remark,) = remarks_on("teachers", run.plan)
        assert remark.startswith(
            "teacher bert: accuracy 0.4000 on the validation rows, where '100' for every row has 0.4500"
        )
        assert remark.endswith("; learning from it: cnn-seed1, cnn-seed2, cnn-seed3 and 1 more")
        finetune.run(run.recipe, world, run.folder)
        assert f"warning: {remark}\n" in capsys.readouterr().err
        report.run(run.recipe, world, run.folder)
        assert f"warning: {remark}\n" in capsys.readouterr().err
        assert remark in read_json(run.folder.report / "results.json")["remarks"]
        assert f"- {remark}\n" in (run.folder.report / "report.md").read_text()
    finally:
        write_json(place, before)
        report.run(run.recipe, world, run.folder)
