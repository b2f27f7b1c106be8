"""The report of a tagging run, from models and scores written by hand: nothing is trained, nothing loaded."""

import re
import statistics
from html.parser import HTMLParser

import pytest
from PIL import Image

from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.report import tables
from dtrain.runfolder import is_done, mark_done, read_json, write_json
from dtrain.stages import report

RECIPE = """
name: names
data: {task: tagging, train: train.txt, test: test.txt}
teachers:
  - {name: big, model: {type: tagger, lstm: 8}}
students:
  - {name: cnn, model: {type: idcnn, filters: 4}, grid: {seed: [1, 2]}}
  - {name: alone, model: {type: tagger, lstm: 4}, teachers: []}
report: {latency: false}
"""
TYPES = ["NAME", "<b>ORG", "地点"]
F1 = {"big": 0.9, "cnn-seed1": 0.8, "cnn-seed2": 0.84, "alone": 0.5}
EXAMPLES = [
    {
        "text": "张三<i>在\n北京|大学*读*书",
        "gold": [[0, 2, "NAME"], [7, 12, "<b>ORG"]],
        "predicted": [[0, 2, "NAME"], [7, 9, "地点"]],
    },
    {"text": "李<i>四", "gold": [[0, 5, "NAME"]], "predicted": [[0, 5, "NAME"]]},
    {"text": "无", "gold": [], "predicted": []},
]


def scored(f1):
    per_type = {
        name: {"precision": f1 + 0.01, "recall": f1 - 0.01, "f1": f1, "support": support}
        for name, support in zip(TYPES, (30, 5, 1200), strict=True)
    }
    names = ("precision", "recall", "f1", "precision_macro", "recall_macro", "f1_macro", "f1_weighted")
    scores = {name: f1 + number / 1000 for number, name in enumerate(names)}
    # The best by the tags alone is another model than the best by entities.
    scores |= {"f1": f1, "accuracy": 1 - f1 / 10, "loss": 2.5, "rows": 50, "entities": 1235, "characters": 4000}
    counts = [[1, 2, 30], [0, 0, 5], [700, 900, 1200]]
    return {"scores": scores, "per_type": per_type, "counts": counts, "examples": EXAMPLES}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(recipe, folder) of a reported run."""
    root = tmp_path_factory.mktemp("tagging")
    for name in ("train.txt", "test.txt"):
        (root / name).write_text("张 B-NAME\n三 I-NAME\n在 O\n\n", encoding="utf-8")
    (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    files = [f"data.{part}={root / part}.txt" for part in ("train", "test")]
    recipe = load_recipe(str(root / "recipe.yaml"), [*files, f"output_dir={root / 'runs'}"])
    plan = Plan(recipe)
    folder = plan.folder
    write_json(folder.data / "rows" / "data.json", {"rows": {"train": 400, "test": 50}, "also_in_train": {"test": 0}})
    for kind, member in plan.members():
        place = folder.model(kind, member.name)
        f1 = F1[member.name]
        trained = {"parameters": 5000 if kind == "teachers" else 1000, "bytes": 4000, "best_epoch": 2.0, "steps": 6}
        write_json(place / "metrics.json", {**trained, "f1": f1, "seconds_per_epoch": 2.5, "rows_per_second": 32.0})
        history = [
            {"step": epoch, "epoch": float(epoch), "split": split, "loss": 1 / epoch} | ({"f1": f1} if valid else {})
            for epoch in (1, 2)
            for split, valid in (("train", False), ("valid", True))
        ]
        write_json(place / "history.json", history)
        record = {"task": "tagging", "types": TYPES, "precision": "fp32"}
        parts = {"valid": scored(f1), "test": scored(f1 - 0.05)}
        evaluated = {"fingerprint": plan.evaluation(kind, member.name), **record, "parts": parts}
        mark_done(place, plan.model(kind, member.name))
        write_json(place / "evaluation.json", evaluated)
    report.run(recipe, Alone(), folder)
    return recipe, folder


class Alone:
    """A world of one rank."""

    def run_on_main(self, work):
        return work()


@pytest.fixture(scope="module")
def results(run):
    return read_json(run[1].report / "results.json")


@pytest.fixture(scope="module")
def markdown(run):
    return (run[1].report / "report.md").read_text(encoding="utf-8")


def test_numbers_are_the_models_own(run, results):
    assert results["task"] == "tagging" and results["part"] == "valid"
    for model in results["models"]:
        f1 = F1[model["name"]]
        scores = scored(f1)["scores"]
        assert {key: model[key] for key in scores} == scores
        assert model["test"] == scored(f1 - 0.05)["scores"]
    group = next(group for group in results["groups"] if group["name"] == "cnn")
    for key in ("precision", "recall", "f1", "f1_macro", "accuracy"):
        values = [scored(f1)["scores"][key] for f1 in (0.8, 0.84)]
        assert group[key] == {"mean": statistics.fmean(values), "std": statistics.stdev(values)}
    assert is_done(run[1].report, Plan(run[0]).report)


def test_the_best_by_entity_f1_is_shown_in_detail(results):
    assert (results["teacher"], results["student"]) == ("big", "cnn-seed2")
    assert results["details"] == {"kind": "students", "name": "cnn-seed2", "part": "valid"} | {
        key: scored(0.84)[key] for key in ("per_type", "counts", "examples")
    }


def test_main_table_has_entity_scores_of_every_part(results):
    table = tables.summary(results)
    wanted = [f"{score}, {part} (%)" for part in ("valid", "test") for score in ("precision", "recall", "F1")]
    assert table.headers[3:9] == wanted
    assert table.rows[0][3:9] == ["90.00", "90.10", "90.00", "85.00", "85.10", "85.00"]
    assert table.rows[1][5] == "82.00 ± 2.83"


def test_table_of_types_ends_with_their_means(results):
    best = next(model for model in results["models"] if model["name"] == "cnn-seed2")
    table = tables.types(results["details"]["per_type"], best)
    assert table.headers == ["type", "precision", "recall", "f1", "entities"]
    assert table.rows == [
        ["NAME", "85.00", "83.00", "84.00", "30"],
        ["<b>ORG", "85.00", "83.00", "84.00", "5"],
        ["地点", "85.00", "83.00", "84.00", "1,200"],
        ["all entities (micro)", "84.00", "84.10", "84.00", "1,235"],
        ["mean of the types (macro)", "84.30", "84.40", "84.50", ""],
    ]


def test_one_line_a_group_for_the_terminal(results):
    assert tables.brief(results)[0] == (
        "big (teacher): on test precision 85.00 %, recall 85.10 %, F1 85.00 %, 5 k parameters (1×)"
    )


def test_markdown_marks_entities_in_brackets(markdown):
    best = "The best student (chosen on valid), cnn-seed2, has 79.00 % F1 on test; the best teacher, big, has 85.00 %."
    assert f"{best} The student has\n1 k parameters, 5× fewer.\n" in markdown
    assert (
        "    gold       [张三|NAME]<i>在⏎[北京|大学|<b>ORG]*读*书\n"
        "    predicted  [张三|NAME]<i>在⏎[北京|地点]|大学*读*书\n"
    ) in markdown
    assert "    gold       无\n" in markdown
    assert "accuracy" not in markdown.split("## Every model")[0] and "confusion" not in markdown


def test_markdown_tables_are_whole_and_plots_are_there(run, markdown):
    found = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    assert len(found) == 3
    for lines in found:
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1, lines
    plots = re.findall(r"!\[[^]]*\]\(([^)]*)\)", markdown)
    assert plots == ["f1_parameters.png", "curves.png", "types.png"]
    for plot in plots:
        with Image.open(run[1].report / plot) as image:
            assert image.width >= 500 and image.height >= 400
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 20)) > 50


def test_the_page_escapes_texts_and_colours_spans(run):
    spans, texts, tags = [], [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append(tag)
            if tag == "mark":
                spans.append(dict(attributes)["class"])

        def handle_data(self, data):
            texts.append(data)

    page = (run[1].report / "report.html").read_text(encoding="utf-8")
    Reader().feed(page)
    # NAME and ORG in gold, NAME and another place predicted, then NAME twice: what only one side has is dashed.
    assert spans == ["t0", "t1 alone", "t0", "t2 alone", "t0", "t0"]
    assert "<i>在⏎" in texts and "北京|大学" in texts and texts.count("李<i>四") == 2 and "<b>ORG" in texts
    assert "i" not in tags and not re.search(r"url\(|@import|https?://", page)
    assert tags.count("img") == 3
