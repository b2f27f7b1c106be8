"""A run folder that was moved, its data deleted: what reads the run alone goes on."""

import json
import re
import shutil

import pytest
import transformers

from dtrain import Predictor, __main__, kept
from dtrain.errors import InputError
from dtrain.plan import plan_of
from dtrain.recipe import dump_recipe, load_recipe
from dtrain.stages import runner

MOVED = "elsewhere/moved"


@pytest.fixture
def moved(run, tmp_path, monkeypatch):
    """The run in another directory, which is the working directory; its data are nowhere."""
    place = tmp_path / MOVED
    shutil.copytree(run.folder.root, place)
    text = dump_recipe(run.recipe).replace(str(run.folder.root.parent.parent), str(tmp_path / "gone"))
    (place / "recipe.yaml").write_text(text)
    (place / "versions.json").write_text(json.dumps(runner.versions()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "_lock", lambda *arguments: None)  # is held until the process ends
    return place


def answers(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_moved_run_predicts_and_reports(run, moved, tmp_path, capsys):
    assert __main__.main(["predict", MOVED, "--output", "prepared"]) == 0
    assert capsys.readouterr().err == f"predict: student cnn-seed3 ({MOVED}/students/cnn-seed3)\n"
    (tmp_path / "new.jsonl").write_text('{"sentence": "电影"}\n{"sentence": "ＡＢＣ"}\n')
    assert __main__.main(["predict", MOVED, "--model", "bert", "--input", "new.jsonl", "--output", "new"]) == 0
    wanted = [answer["scores"] for answer in Predictor(run.folder.model("teachers", "bert"))(["电影", "ＡＢＣ"])]
    assert [line["scores"] for line in answers(tmp_path / "new")] == wanted
    assert len(answers(tmp_path / "prepared")) == 12

    before = json.loads((moved / "report" / "results.json").read_text())
    shutil.rmtree(moved / "report")
    assert __main__.main(["report", MOVED, "report.latency=false"]) == 0
    found = json.loads((moved / "report" / "results.json").read_text())
    assert [model["accuracy"] for model in found["models"]] == [model["accuracy"] for model in before["models"]]
    assert found["failed"] == before["failed"] and found["failed"][0]["reason"] == "loss is nan at step 3"
    assert "nothing to do" in run_of(capsys, ["evaluate", MOVED])

    model = transformers.AutoModelForSequenceClassification.from_pretrained(moved / "teachers" / "bert")
    assert model.config.num_labels == 3


def test_a_moved_run_exports(run, moved, capsys):
    """Its validation rows are in the run folder, so that the check needs none of the data."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    assert __main__.main(["export", f"{MOVED}/students/cnn-seed1", "--check"]) == 0
    assert "check on 40 validation rows 0 answers differ" in capsys.readouterr().out
    assert (moved / "export" / "cnn-seed1" / "predict.py").is_file()


def run_of(capsys, words):
    assert __main__.main(words) == 0
    return capsys.readouterr().out


def test_a_recipe_whose_data_are_gone(run, moved, tmp_path, capsys):
    """The run is where the recipe says; what made it is gone."""
    shutil.copy(moved / "recipe.yaml", "my.yaml")
    words = ["my.yaml", f"output_dir={tmp_path}/elsewhere", "name=moved"]
    assert __main__.main(["predict", *words, "--output", "prepared"]) == 0
    assert len(answers(tmp_path / "prepared")) == 12
    capsys.readouterr()
    assert __main__.main(["predict", *words, "data.max_length=20", "--output", "other"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no such file" in line and "was made by another recipe: data differ" in line
    assert not (tmp_path / "other").exists()
    # Where the data are there, nothing of this matters: a change is a change.
    recipe = load_recipe("my.yaml", [f"data.{part}={run.recipe.data.train[0]}" for part in ("train", "valid", "test")])
    assert kept.load_kept("my.yaml", [], models=True).kept is None and recipe.kept is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "."], r"\.: is a folder without recipe.yaml or config.json \(allowed: a recipe, a run folder, a model folder\)"),
        (["report", "."], r"\.: is a folder without recipe.yaml or config.json \(allowed: a recipe, a run folder\)"),
        (["distill", MOVED], "is a folder, not a recipe file"),
        (["predict", f"{MOVED}/teachers/bert", "seed=3"], "seed=3: changes a recipe, and .* is a model folder"),
    ],
)  # fmt: skip
def test_folders_that_do_not_fit(moved, capsys, words, message):
    assert __main__.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_what_a_kept_run_is_complete_for(run, moved):
    recipe = kept.load_kept(MOVED, [], models=True)
    plan = plan_of(recipe)
    assert plan.folder.root == moved.relative_to(moved.parent.parent)
    assert plan.prepared() and plan.trained("teachers") and plan.trained("students") and plan.all_evaluated()
    assert plan.model("teachers", "bert") == run.plan.model("teachers", "bert")
    (moved / "students" / "scratch" / "model.safetensors").write_bytes(b"")
    assert not plan.trained("students")
    with pytest.raises(InputError):
        kept.load_kept("absent.yaml", [], models=True)
