"""A teacher that reads annotations, from rows to report, with the given annotations and with those that a tagger
predicts.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtrain import Predictor
from dtrain.data import PreparedData
from dtrain.errors import InputError
from dtrain.knowledge.reader import StoreReader
from dtrain.models import load
from dtrain.plan import Plan
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import World
from dtrain.stages import evaluate, export, finetune, precompute, predict, prepare, report
from dtrain.stages.check import check_inputs
from dtrain.tasks.registry import task_of
from dtrain.training.workers import Workers
from tests.students.informed import plan_of, write_rows

NOBODY: dict[str, Any] = {"model": None, "input": None, "form": "jsonl"}


@pytest.fixture(scope="module")
def plan(world: World, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Run everything up to the scores of the teachers; students are not needed here."""
    root = tmp_path_factory.mktemp("informed")
    write_rows(root)
    made = plan_of(root, "run", {"name": "raw", "losses": [{"type": "marginal_matching"}]})
    for stage in (prepare, finetune, precompute):
        stage.run(made.recipe, world, made.folder)
    alone = plan_of(root, "run")
    for stage in (evaluate, report):
        stage.run(alone.recipe, world, alone.folder)
    return made


def answers(plan: Plan, world: World, output: Path, **options: Any) -> list[dict[str, Any]]:
    predict.run(plan.recipe, world, plan.folder, **{**NOBODY, "output": str(output), "model": "informed", **options})
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_two_rows_in_the_report_and_their_scores_by_hand(plan: Plan, world: World) -> None:
    place = plan.folder.model("teachers", "informed")
    record = read_json(place / "evaluation.json")
    assert record["predicted"]["annotated_by"] == "arguments"
    data, model = PreparedData.open(plan.folder.of_task("events")), load(place)
    part, task, workers = data.part("test", "students", "own"), task_of(data), Workers.of(world, "fp32")
    assert task.scores(model, part, workers) == record["parts"]["test"]["scores"]
    # The predictions of the tagger of arguments, by its own Predictor, in place of the annotations of the rows.
    found = Predictor(plan.folder.model("teachers", "arguments"))(list(part.rows()["text"]))
    numbers = {name: 4 * n for n, name in enumerate(data.privileged)}
    assert part.privileged is not None
    tags = np.zeros(len(part.privileged), dtype=np.int16)
    for entities, begin in zip(found, part.tag_offsets.tolist(), strict=False):
        for entity in entities:  # each of one character or more
            first, end = begin + entity["start"], begin + entity["end"]
            tags[first:end] = numbers[entity["type"]] + 2
            tags[first], tags[end - 1] = numbers[entity["type"]] + 1, numbers[entity["type"]] + 3
            if end - first == 1:
                tags[first] = numbers[entity["type"]] + 4
    again = task.scores(model, replace(part, privileged=tags), workers)
    assert again == record["predicted"]["parts"]["test"]["scores"]
    results = read_json(plan.folder.report / "events" / "results.json")
    assert [row["annotated_by"] for row in results["annotated"]] == [None, "arguments"]
    page = (plan.folder.report / "events" / "report.md").read_text(encoding="utf-8")
    assert "| informed | given |" in page and "| informed | found by arguments |" in page
    overview = read_json(plan.folder.report / "results.json")["groups"]
    scores = [record["parts"]["test"]["scores"]["f1"], record["predicted"]["parts"]["test"]["scores"]["f1"]]
    of = [(row.get("annotated_by"), row["scores"]["events"]["mean"]) for row in overview if row["name"] == "informed"]
    assert of == [(None, scores[0]), ("arguments", scores[1])]
    whole = (plan.folder.report / "report.md").read_text(encoding="utf-8")
    assert "| informed | teacher, annotations found by arguments |" in whole
    assert "Given and predicted annotations" in (plan.folder.report / "events" / "report.html").read_text(
        encoding="utf-8"
    )


def test_check_knows_of_prepared_rows_who_cannot_annotate(plan: Plan) -> None:
    root = plan.folder.root.parent.parent
    recipe = plan_of(root, "run", {"name": "raw", "losses": [{"type": "marginal_matching"}]}).recipe
    check_inputs(recipe)
    recipe.teachers[0].annotated_by = "raw"
    with pytest.raises(InputError, match="teachers.informed.annotated_by: raw finds burn, hit, which are no annotat"):
        check_inputs(recipe)


def test_predict_with_given_and_with_predicted_annotations(plan: Plan, world: World, tmp_path: Path) -> None:
    test = plan.recipe.tasks["events"].test[0] if plan.recipe.tasks else ""
    rows = [json.loads(line) for line in Path(test).read_text(encoding="utf-8").splitlines()]
    place = plan.folder.model("teachers", "informed")
    given = answers(plan, world, tmp_path / "a", input=test)
    assert answers(plan, world, tmp_path / "b") == given  # the recipe's own test rows
    assert any(line["spans"] for line in given)
    ask = Predictor(place)
    assert [line["spans"] for line in given] == ask(
        [r["text"] for r in rows], privileged=[r["arguments"] for r in rows]
    )
    found = Predictor(plan.folder.model("teachers", "arguments"))([r["text"] for r in rows])
    predicted = answers(plan, world, tmp_path / "c", input=test, privileged="predicted")
    assert [line["spans"] for line in predicted] == ask([r["text"] for r in rows], privileged=found)
    # The model folder alone, whose files name the column of the annotations.
    predict.run_folder(place, world, **{**NOBODY, "input": test, "output": str(tmp_path / "d")})
    assert [json.loads(line) for line in (tmp_path / "d").read_text("utf-8").splitlines()] == given


def test_predict_without_annotations_says_so(plan: Plan, world: World, tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"text": "撞了甲"}) + "\n", encoding="utf-8")
    place = plan.folder.model("teachers", "informed")
    with pytest.raises(
        InputError, match="plain.jsonl:1: has no 'arguments'.* reads annotations .*--privileged predicted"
    ):
        answers(plan, world, tmp_path / "a", input=str(plain))
    assert len(answers(plan, world, tmp_path / "a", input=str(plain), privileged="predicted")) == 1
    assert len(answers(plan, world, tmp_path / "a", input=str(plain), model="arguments", task="arguments")) == 1
    with pytest.raises(InputError, match="--privileged: arguments reads the text alone"):
        answers(plan, world, tmp_path / "a", input=str(plain), model="arguments", task="arguments", privileged="given")
    with pytest.raises(InputError, match="--privileged: predicted needs the recipe"):
        predict.run_folder(place, world, **{**NOBODY, "input": str(plain), "privileged": "predicted"})
    with pytest.raises(
        InputError, match=r"privileged: .*informed reads annotations \(where, who\); give those of each text"
    ):
        Predictor(place)(["撞了甲"])
    with pytest.raises(InputError, match="privileged: .*arguments reads the text alone"):
        Predictor(plan.folder.model("teachers", "arguments"))(["撞了甲"], privileged=[[]])
    for beside, reason in (
        ([[[0, 1, "whom"]]], "knows no annotation 'whom'; did you mean 'who'"),
        ([[[0, 9, "who"]]], r"privileged: span \[0, 9\] \(who\) is not within the text"),
        ([], "row 0: has no annotations"),
        ([[], []], "row 1: has annotations and no text"),
        ([[3]], "row 0: privileged: must be a list of"),
        ([[["0", 1, "who"]]], "row 0: privileged: must be a list of"),
        ([[[0.0, 1, "who"]]], "row 0: privileged: must be a list of"),
        ([[[0, 1, None]]], "row 0: privileged: must be a list of"),
        ([None], "row 0: privileged: must be a list of"),
        ([[[0, 2, "who"], [1, 3, "where"]]], "line 0: privileged: spans overlap: '撞了'"),
        ([[[1, 1, "who"]]], "line 0: privileged: span .* is not within the text"),
    ):
        with pytest.raises(InputError, match=reason):
            Predictor(place)(["撞了甲"], privileged=beside)


def test_a_moved_folder_reads_spans_as_its_recipes_files_had_them(plan: Plan, world: World, tmp_path: Path) -> None:
    """The recipe leaves `span_end` open; its files show that ends are exclusive, while the new rows alone do not show
    it.
    """
    place = shutil.copytree(plan.folder.model("teachers", "informed"), tmp_path / "moved")
    path = place / "preprocessing.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    said["layout"]["columns"]["span_end"] = "auto"
    assert said["written"]["span_end"] == "exclusive"
    path.write_text(json.dumps(said), encoding="utf-8")
    # Many rows, so that it does not depend on one row whether the model's answer changes with the ends of its spans.
    texts = [f"{verb}了{who}又{verb}{where}。" for verb in "撞烧" for who in "甲乙丙" for where in "东西"] * 3
    spans = [[[2, 4, "who"], [5, 6, "where"]]] * 12 + [[[2, 3, "who"]]] * 12 + [[[4, 5, "where"]]] * 12
    longer = [[[first, end + 1, kind] for first, end, kind in own] for own in spans]
    rows = [{"text": text, "arguments": own} for text, own in zip(texts, spans, strict=True)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    predict.run_folder(
        place, world, **{**NOBODY, "input": str(tmp_path / "new.jsonl"), "output": str(tmp_path / "out")}
    )
    ask = Predictor(place)
    expected, others = ask(texts, privileged=spans), ask(texts, privileged=longer)
    found = [json.loads(line)["spans"] for line in (tmp_path / "out").read_text(encoding="utf-8").splitlines()]
    assert found == expected != others
    # Of nested annotations the outer one is used, as in files.
    nested = [[*spans[0], [2, 3, "where"], [5, 6, "where"]]]
    assert ask(texts[:1], privileged=nested) == ask(texts[:1], privileged=spans[:1])


def test_export_and_card_say_what_it_reads(plan: Plan, world: World) -> None:
    place = plan.folder.model("teachers", "informed")
    with pytest.raises(InputError, match="reads annotations beside the text, which an exported model is not given"):
        export.run_folder(place, world, model=None, task=None, to="onnx", quantize=None, check=False)
    card = (place / "README.md").read_text(encoding="utf-8")
    assert "reads annotations beside the text, which it cannot answer without: where, who (column 'arguments'" in card
    code = card.split("```python\n")[1].split("```")[0]
    exec(code, {})  # the code on the model card


def test_equal_texts_with_other_annotations_have_answers_of_their_own(plan: Plan) -> None:
    data = PreparedData.open(plan.folder.of_task("events"))
    part = data.part("train", "students", "own")
    texts, beside = list(part.rows()["text"]), [tuple(row) for row in part.rows()["privileged"]]
    pairs = [(i, j) for i in range(40) for j in range(i) if texts[i] == texts[j] and beside[i] != beside[j]]
    store = StoreReader.open(plan.folder.knowledge("informed"))
    i, j = pairs[0]
    one, other = (store.read("marginals", part.ids[[row]]) for row in (i, j))
    assert not torch.allclose(one, other, atol=1e-3)
    with torch.no_grad():
        model = load(plan.folder.model("teachers", "informed"))
        wanted = model(**part.collate(np.array([i])), marginals=True).marginals.exp()
    torch.testing.assert_close(one, wanted, atol=1e-3, rtol=0)
