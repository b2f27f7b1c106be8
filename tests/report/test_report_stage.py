"""report: its numbers, its plots, and that its page needs nothing from outside."""

import re
import statistics
from html.parser import HTMLParser

import pytest
from PIL import Image

from dtrain.errors import InputError
from dtrain.runfolder import is_done, mark_done, read_json, write_json
from dtrain.stages import report


@pytest.fixture(scope="module")
def results(run):
    return read_json(run.folder.report / "results.json")


def test_models_have_their_numbers(run, results):
    assert results["name"] == "small" and results["part"] == "valid"
    assert results["rows"] == {"train": 80, "valid": 40, "test": 12}
    names = ["bert", "cnn-seed1", "cnn-seed2", "cnn-seed3", "scratch"]
    assert [model["name"] for model in results["models"]] == names
    for model in results["models"]:
        scores = read_json(run.folder.model(model["kind"], model["name"]) / "evaluation.json")["parts"]["valid"][
            "scores"
        ]
        assert {key: model[key] for key in scores} == scores
        assert model["bytes"] == (run.folder.model(model["kind"], model["name"]) / "model.safetensors").stat().st_size
        assert model["rows_per_second_cpu_1"] > 0 and model["rows_per_second_cpu_64"] > 0
    bert, cnn = results["models"][0], results["models"][1]
    assert results["teacher"] == "bert" and bert["compression"] == 1 and bert["speedup_cpu_64"] == 1
    assert cnn["compression"] == bert["parameters"] / cnn["parameters"]
    assert cnn["speedup_cpu_1"] == cnn["rows_per_second_cpu_1"] / bert["rows_per_second_cpu_1"]


def test_seeds_are_one_group_with_mean_and_sample_deviation(results):
    group = next(group for group in results["groups"] if group["name"] == "cnn")
    assert group["members"] == ["cnn-seed1", "cnn-seed2", "cnn-seed3"] and group["seeds"] == [1, 2, 3]
    values = [model["accuracy"] for model in results["models"] if model["name"].startswith("cnn")]
    assert group["accuracy"] == {"mean": statistics.fmean(values), "std": statistics.stdev(values)}
    assert next(group for group in results["groups"] if group["name"] == "bert")["accuracy"]["std"] is None


def test_the_best_student_is_shown_in_detail(results):
    best = max((m for m in results["models"] if m["kind"] == "students"), key=lambda m: m["accuracy"])
    assert results["details"]["name"] == results["student"]
    assert sum(map(sum, results["details"]["confusion"])) == 40
    student = next(model for model in results["models"] if model["name"] == results["student"])
    assert student["accuracy"] == best["accuracy"]


def test_a_failed_student_is_told_with_its_reason(run, results):
    assert results["failed"] == [{"kind": "students", "name": "broken", "reason": "loss is nan at step 3"}]
    for file in ("report.md", "report.html"):
        assert "loss is nan at step 3" in (run.folder.report / file).read_text(encoding="utf-8")


def test_plots_are_pictures_with_something_on_them(run):
    for name in ("accuracy_parameters", "accuracy_latency", "curves", "confusion"):
        with Image.open(run.folder.report / f"{name}.png") as image:
            assert image.width >= 500 and image.height >= 400
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 20)) > 50


def test_the_page_holds_everything_itself(run):
    seen = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.append(tag)
            for name, value in attributes:
                if name in ("src", "href", "srcset", "data"):
                    assert value.startswith("data:image/png;base64,"), value[:80]

    page = (run.folder.report / "report.html").read_text(encoding="utf-8")
    Reader().feed(page)
    assert seen.count("img") == 4 and "script" not in seen and "link" not in seen
    assert not re.search(r"url\(|@import|https?://", page)


def test_markdown_tables_are_whole_and_plots_are_there(run):
    text = (run.folder.report / "report.md").read_text(encoding="utf-8")
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1, lines
    for plot in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (run.folder.report / plot).exists()


def test_report_is_complete_for_its_recipe(run):
    assert is_done(run.folder.report, run.plan.report)


def test_a_model_that_is_not_evaluated_is_named(run, world):
    scored = run.folder.model("students", "scratch") / "evaluation.json"
    kept, before = scored.read_text(), read_json(run.folder.report / "results.json")
    scored.unlink()
    try:
        with pytest.raises(InputError, match="students/scratch: not evaluated yet .* `evaluate`"):
            report.run(run.recipe, world, run.folder)
    finally:
        scored.write_text(kept)
    assert read_json(run.folder.report / "results.json") == before


def test_a_teacher_that_learnt_nothing_is_told_with_its_students(run, world, capsys):
    place = run.folder.model("teachers", "bert")
    before, done = (place / "metrics.json").read_text(), (place / "done.json").read_text()
    write_json(place / "metrics.json", {**read_json(place / "metrics.json"), "remarks": ["it gives one answer"]})
    mark_done(place, run.plan.model("teachers", "bert"))
    try:
        report.run(run.recipe, world, run.folder)
        remark = "teacher bert: it gives one answer; students that learn from it: cnn-seed1, cnn-seed2, cnn-seed3"
        assert f"warning: {remark}\n" in capsys.readouterr().err
        assert read_json(run.folder.report / "results.json")["remarks"] == [remark]
        assert f"- {remark}\n" in (run.folder.report / "report.md").read_text(encoding="utf-8")
        assert f"<li>{remark}</li>" in (run.folder.report / "report.html").read_text(encoding="utf-8")
    finally:
        (place / "metrics.json").write_text(before)
        (place / "done.json").write_text(done)
        report.run(run.recipe, world, run.folder)
