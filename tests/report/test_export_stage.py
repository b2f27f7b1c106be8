"""export: a model of a run as a folder beside it, compared with the model on the validation rows."""

import json
import shutil

import pytest

from dtrain import __main__, kept
from dtrain.errors import InputError
from dtrain.export import record
from dtrain.export.check import difference
from dtrain.plan import plan_of
from dtrain.recipe.models import architectures
from dtrain.runfolder import read_json
from dtrain.stages import export, report


def exported(run, world, **options):
    wanted = {"model": None, "to": "onnx", "quantize": None, "check": False, **options}
    export.run(run.recipe, world, run.folder, **wanted)


@pytest.fixture(scope="module")
def onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


def test_the_check_tells_what_an_export_costs(run, world, onnx, capsys):
    try:
        exported(run, world, quantize="int8", check=True)
        folder = run.folder.export / "cnn-seed3-int8"
        found = read_json(folder / "metrics.json")
        assert (found["model"], found["kind"], found["int8"], found["opset"]) == ("cnn-seed3", "students", True, 20)
        assert found["bytes"] == (folder / "graph.onnx").stat().st_size
        check = found["check"]
        assert (check["split"], check["rows"], check["metric"]) == ("valid", 40, "accuracy")
        assert 0 < check["largest_difference"] < 0.1 and 0 <= check["flips"] < 20
        before = read_json(run.folder.model("students", "cnn-seed3") / "evaluation.json")["parts"]["valid"]["scores"]
        assert check["before"] == before["accuracy"]
        assert "answers differ" in capsys.readouterr().out
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f"on 40 validation rows {check['flips']} answers differ" in card
        took = check["milliseconds"]["export"]
        assert 0 < took["p50"] <= took.get("p99", took["p50"])  # a slow machine has too few calls for the second
        assert f"export {' and '.join(f'{share} {value:.2f}' for share, value in took.items())} ms" in card
        assert record.exports_of(run.folder, "students", "cnn-seed3") == [folder]
        assert record.exports_of(run.folder, "students", "cnn-seed2") == []
        report.run(run.recipe, world, run.folder)
        (shown,) = read_json(run.folder.report / "results.json")["exported"]
        assert shown["name"] == "cnn-seed3-int8" and shown["rows_per_second_cpu_64"] > 0
        assert 0 < shown["milliseconds_cpu_1_p50"] <= shown.get("milliseconds_cpu_1_p99", 1e9)
        page = (run.folder.report / "report.md").read_text(encoding="utf-8")
        assert "## Exported models" in page and "| cnn-seed3-int8 | onnx, int8 |" in page
        assert "Exported models" in (run.folder.report / "report.html").read_text(encoding="utf-8")
        assert plan_of(run.recipe).reported()
        # One of other weights is none of this model's.
        (folder / "metrics.json").write_text(json.dumps({**found, "made_from": "other"}))
        assert record.exports_of(run.folder, "students", "cnn-seed3") == []
    finally:
        shutil.rmtree(run.folder.export, ignore_errors=True)
        report.run(run.recipe, world, run.folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "absent"}, "--model: no model 'absent'"),
        ({"model": "broken"}, "--model: broken: not trained yet"),
        ({"to": "torch", "quantize": "int8"}, "--quantize: is for --to onnx"),
    ],
)
def test_what_cannot_be(run, world, onnx, options, message):
    with pytest.raises(InputError, match=message):
        exported(run, world, **options)
    assert not run.folder.export.exists()


def test_an_architecture_without_a_graph_is_refused_in_one_line(run, world, monkeypatch, onnx):
    monkeypatch.setattr(architectures()["textcnn"], "graph", None)
    with pytest.raises(InputError) as refused:
        exported(run, world, model="cnn-seed1")
    (problem,) = refused.value.problems
    assert "a textcnn cannot be exported (allowed: bert, nezha" in problem
    assert not list(run.folder.export.glob("*")) if run.folder.export.exists() else True


def test_a_package_that_is_missing_is_named(run, world, monkeypatch):
    monkeypatch.setattr("dtrain.export.targets.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--to: needs onnx, onnxscript, onnxruntime: pip install 'dtrain\[export\]'"):
        exported(run, world)


def test_a_model_folder_away_from_its_run(run, world, tmp_path, monkeypatch, capsys, onnx):
    """It has no rows to be checked on, and is written where one is."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.folder.model("students", "cnn-seed1"), "copied")
    assert __main__.main(["export", "copied", "--check"]) == 2
    assert __main__.main(["export", "copied", "--model", "x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "--check: compares on the validation or test rows of a run" in lines[0] and "--model: chooses" in lines[1]
    assert __main__.main(["export", "copied"]) == 0
    assert (tmp_path / "export" / "copied" / "predict.py").is_file()
    assert kept.is_run_folder(tmp_path) is False


def test_differences_of_answers():
    one = [{"label": "a", "score": 0.5, "scores": {"a": 0.5, "b": 0.5}}, [{"text": "x", "start": 1, "score": 0.25}], []]
    other = json.loads(json.dumps(one))
    other[0]["scores"]["b"] = 0.75
    other[1][0]["start"] = 2
    found = difference(one, other)
    assert (found.rows, found.flips, found.largest) == (3, 1, 0.25)
