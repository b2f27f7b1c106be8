"""evaluate: what it leaves in the model folders, and when it works again."""

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix

from dtrain.data import tokenizer_name
from dtrain.errors import InputError
from dtrain.models import load
from dtrain.runfolder import read_json, write_json
from dtrain.stages import evaluate


def record(run, kind, name):
    return run.folder.model(kind, name) / "evaluation.json"


@pytest.mark.parametrize(("kind", "name"), [("teachers", "bert"), ("students", "cnn-seed2"), ("students", "scratch")])
def test_scores_are_those_of_a_plain_loop(run, kind, name):
    found = read_json(record(run, kind, name))
    member = next(m for k, m in run.plan.members() if m.name == name)
    part = run.data.part("valid", tokenizer_name(member))
    model = load(run.folder.model(kind, name))
    with torch.no_grad():
        predicted = [int(model(**part.collate([i])).logits.argmax()) for i in range(len(part))]
    valid = found["parts"]["valid"]
    assert list(found["parts"]) == ["valid"]  # the test rows have no labels
    assert found["labels"] == run.data.labels == ["100", "101", "102"]
    assert valid["scores"]["accuracy"] == accuracy_score(part.labels, predicted)
    assert valid["scores"]["rows"] == 40
    assert valid["confusion"] == confusion_matrix(part.labels, predicted, labels=range(3)).tolist()
    assert [row["label"] for row in valid["per_class"]] == run.data.labels
    assert found["fingerprint"] == run.plan.evaluation(kind, name)


def test_only_what_is_not_evaluated_is_evaluated(run, world):
    fresh, stale = record(run, "students", "cnn-seed1"), record(run, "teachers", "bert")
    before, wanted = fresh.stat().st_mtime_ns, read_json(stale)
    write_json(stale, {**wanted, "fingerprint": "of another model"})
    evaluate.run(run.recipe, world, run.folder)
    assert fresh.stat().st_mtime_ns == before
    assert read_json(stale) == wanted


def test_a_model_that_is_not_trained_is_named(run, world):
    done = run.folder.model("students", "scratch") / "done.json"
    kept, scored = done.read_text(), record(run, "students", "scratch")
    evaluation = scored.read_text()
    done.unlink()
    scored.unlink()
    try:
        with pytest.raises(InputError, match="students/scratch: not trained yet .* `distill`"):
            evaluate.run(run.recipe, world, run.folder)
        assert not scored.exists()
    finally:
        done.write_text(kept)
        scored.write_text(evaluation)


def test_no_labelled_part_is_bad_input(run, world):
    only_test = run.recipe.model_copy(deep=True)
    only_test.report.splits = ["test"]
    with pytest.raises(InputError, match="report.splits: none of test has labelled rows"):
        evaluate.run(only_test, world, run.folder)
