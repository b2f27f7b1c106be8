"""Rows of several sides: which rows each side has, what is encoded of them, and what a student reads of a teacher's store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dtrain.data import PreparedData
from dtrain.data.batch import KNOWN
from dtrain.losses.objective import build_losses
from dtrain.plan import Plan
from dtrain.recipe import Recipe, load_recipe
from dtrain.recipe.losses import LossSpec
from dtrain.runfolder import RunFolder
from dtrain.stages import prepare
from dtrain.teachers.sources import StoredTeacher
from dtrain.training.members import useful_rows

RECIPE = """\
name: sides
output_dir: {folder}/runs
data:
  task: {task}
  train: {folder}/train.jsonl
  transfer:
    - {{path: {folder}/pairs.tsv, columns: {{en: 0, zh: 1}}}}
    - {{path: {folder}/more.txt, columns: {{zh: 0}}}}
  test: {{path: {folder}/test.jsonl, columns: {{zh: text, both: text}}}}
  columns: {{text: {{en: english, zh: chinese, both: english}}, id: number}}
  vocabulary: {{min_count: 1}}
  split: {{valid: 0.25}}
teachers:
  - {{name: english, reads: en, model: {{type: bert, size: tiny, vocabulary_size: 100}}}}
students:
  - {{name: chinese, reads: zh, model: {{type: bilstm}}}}
  - {{name: shared, reads: zh, teachers: [], rows: [train], model: {{type: bert, size: tiny, tokenizer: english}}}}
  - {{name: either, reads: both, teachers: [], model: {{type: bilstm}}}}
"""
TRAIN = [{"english": f"word {n}", "number": n, "label": n % 2} for n in range(12)]
TRAIN += [{"chinese": f"词{n}", "number": n, "label": n % 2} for n in range(12, 16)]
TRAIN += [{"english": f"word {n}", "chinese": f"词{n}", "number": n, "label": n % 2} for n in range(16, 20)]


def prepared(folder: Path, task: str = "classification") -> tuple[Recipe, PreparedData]:
    def rows(name: str, found: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")

    rows("train.jsonl", TRAIN)
    rows("test.jsonl", [{"text": f"词{n}", "label": n % 2} for n in range(4)])
    (folder / "pairs.tsv").write_text("".join(f"pair {n}\t对{n}\n" for n in range(5)), encoding="utf-8")
    (folder / "more.txt").write_text("多1\n多2\n", encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, task=task), encoding="utf-8")
    recipe = load_recipe(str(path))
    plan = Plan(recipe)
    prepare.prepare(recipe, plan.folder, plan.data, plan.tokenizer)
    return recipe, PreparedData.open(RunFolder(plan.folder.root))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepared(tmp_path_factory.mktemp("sides"))[1]


def test_a_side_has_the_rows_that_have_it_under_their_own_ids(data: PreparedData) -> None:
    assert data.parts_read("students@zh") == ["train", "valid", "test", "transfer"]
    assert data.parts_read("english@en") == ["train", "valid", "transfer"]
    en, zh = (data.part("transfer", name) for name in ("english@en", "students@zh"))
    assert en.ids.tolist() == zh.ids[:5].tolist() and len(zh) == 7
    assert en.rows()["text"] == [f"pair {n}" for n in range(5)]
    assert zh.rows()["text"] == [*(f"对{n}" for n in range(5)), "多1", "多2"]
    assert zh.parallel is not None and zh.parallel.tolist() == [True] * 5 + [False] * 2
    known = {}
    for name in ("english@en", "students@zh"):
        for part in ("train", "valid"):
            rows = data.part(part, name).rows()
            known |= {
                (int(key), name): (id, label)
                for key, id, label in zip(rows["key"], rows["id"], rows["label"], strict=True)
            }
    assert {number for number, name in known if name == "english@en"} == {*range(12), *range(16, 20)}
    assert {number for number, name in known if name == "students@zh"} == set(range(12, 20))
    assert all(known[n, "english@en"] == known[n, "students@zh"] for n in range(16, 20))  # one row, with one id
    assert all(label == number % 2 for (number, _), (_, label) in known.items())


def test_one_column_may_be_several_sides_and_makes_no_pair_of_a_row(data: PreparedData) -> None:
    test, train = data.part("test", "students@both"), data.part("train", "students@both")
    assert test.rows()["text"] == [f"词{n}" for n in range(4)]
    assert train.rows()["text"][0].startswith("word")
    assert test.parallel is not None and not test.parallel.any()


def test_vocabularies_are_of_the_sides_that_are_read_with_them(data: PreparedData) -> None:
    def characters(name: str) -> set[str]:
        found = json.loads((data.tokenizer_path(name) / "tokenizer.json").read_text(encoding="utf-8"))
        return set("".join(found["model"]["vocab"]))

    assert "对" in characters("students@zh") and "w" not in characters("students@zh")
    assert {"对", "w"} <= characters("english@en")  # the student `shared` reads Chinese with it
    assert data.tokenizer_fingerprint("english@en") == data.tokenizer_fingerprint("english@zh")
    assert data.vocabulary("english@en") == data.vocabulary("english@zh")


def test_labels_are_counted_by_side(data: PreparedData) -> None:
    assert sum(data.info["label_counts"]["train"].values()) + sum(data.info["label_counts"]["valid"].values()) == 20
    zh = data.label_counts("students@zh")
    assert sum(zh["train"].values()) + sum(zh["valid"].values()) == 8 and zh["test"] == {"0": 2, "1": 2}
    assert "test" not in data.label_counts("english@en")


def test_numbers_have_sides_too(tmp_path: Path) -> None:
    data = prepared(tmp_path, "regression")[1]
    part = data.part("train", "students@zh")
    values, _ = part.collate_values(np.arange(len(part)))
    assert values.tolist() == [float(int(key) % 2) for key in part.rows()["key"]]


SETS = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


class Store:
    """A store of the rows with even ids."""

    first_id = np.array([0])

    def holds(self, ids: np.ndarray) -> np.ndarray:
        return ids % 2 == 0

    def read(self, kind: str, ids: np.ndarray) -> torch.Tensor:
        assert (ids % 2 == 0).all()
        return torch.from_numpy(ids).float()[:, None] * torch.tensor([1.0, -1.0])


def test_what_a_teacher_has_not_seen_is_no_part_of_its_terms() -> None:
    teacher = StoredTeacher(Store(), partial=True)  # type: ignore[arg-type]
    found = teacher.read(np.array([4, 5, 6]), ["logits"])
    assert found[KNOWN].tolist() == [True, False, True] and found["logits"][:, 0].tolist() == [4.0, 0.0, 6.0]
    assert KNOWN not in teacher.read(np.array([4, 6]), ["logits"])
    nobody = teacher.read(np.array([1, 3]), ["logits"])
    assert not nobody[KNOWN].any() and nobody["logits"].shape == (2, 2)

    losses = build_losses([LossSpec(type="soft_targets"), LossSpec(type="cross_entropy")])
    logits = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    inputs, labelled = {"logits": logits, "labels": torch.tensor([0, 1, 0])}, torch.tensor([False, True, False])
    total, sums, counts = losses(inputs, {"t": found}, labelled)
    alone = build_losses([LossSpec(type="soft_targets")])
    rest = {"logits": logits[[0, 2]], "labels": inputs["labels"][[0, 2]]}
    of_rest = alone(rest, {"t": {"logits": found["logits"][[0, 2]]}}, labelled[[0, 2]])[0]
    gold = -logits[1].log_softmax(0)[1]
    torch.testing.assert_close(total, of_rest + gold)
    assert counts["soft_targets"] == 2 and counts["cross_entropy"] == 1
    (gradient,) = torch.autograd.grad(total, logits)
    (expected,) = torch.autograd.grad(of_rest + gold, logits)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("name", "width", "gold"),
    [
        ("teacher_annealing", 2, lambda z: functional.cross_entropy(z, torch.tensor([1, 0]), reduction="none")),
        ("number_annealing", 1, lambda z: (z[:, 0] - torch.tensor([7.0, 8.0])).square()),
        ("label_set_annealing", 2, lambda z: functional.binary_cross_entropy_with_logits(z, SETS, reduction="none").mean(1)),
    ],
)  # fmt: skip
def test_the_label_of_a_row_counts_whether_or_not_its_teacher_has_seen_it(name: str, width: int, gold: Any) -> None:
    """Rows 0 and 1 have a label, and the teacher has seen rows 1 and 3."""
    labelled, seen = torch.tensor([True, True, False, False]), torch.tensor([False, True, False, True])
    losses = build_losses([LossSpec(type=name)])
    logits, teacher = torch.randn(2, 4, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = {"labels": torch.tensor([1, 0, 0, 0]), "numbers": torch.tensor([7.0, 8.0, 0.0, 0.0]),
               "label_sets": torch.cat([SETS, torch.zeros_like(SETS)])}  # fmt: skip

    def value(rows: list[int], **of_teacher: torch.Tensor) -> torch.Tensor:
        logits_of = {"logits": logits[rows], **{need: given[rows] for need, given in targets.items()}}
        outputs = {"logits": teacher[rows], **{need: given[rows] for need, given in of_teacher.items()}}
        total, _, counts = losses(logits_of, {"t": outputs}, labelled[rows], progress=0.25)
        assert counts[name] == len(rows) - (2 in rows and bool(of_teacher))
        return total

    unseen = gold(logits[:2])[0] * 0.25
    torch.testing.assert_close(value([0], **{KNOWN: seen}), unseen)
    torch.testing.assert_close(value([0, 1, 2, 3], **{KNOWN: seen}), unseen + value([1, 3]))
    assert value([2], **{KNOWN: seen}) == 0.0


def test_rows_from_which_nothing_can_be_learnt_are_left_out(data: PreparedData) -> None:
    zh = data.part("transfer", "students@zh")
    zh = zh.take(np.arange(len(zh))[::-1].copy())
    assert zh.rows()["text"][0] == "多2" and zh.parallel is not None and zh.parallel.tolist()[0] is False
    teacher = StoredTeacher(Store(), partial=True)  # type: ignore[arg-type]
    taught, gold = LossSpec(type="soft_targets"), LossSpec(type="cross_entropy")
    of_teacher = useful_rows(zh, [taught, gold], {"t": teacher})
    assert of_teacher.tolist() == np.flatnonzero(zh.ids % 2 == 0).tolist() and 0 < len(of_teacher) < len(zh)
    assert len(useful_rows(zh, [gold], {"t": teacher})) == 0
    assert len(useful_rows(zh, [LossSpec(type="top_gap")], {})) == len(zh)  # needs neither
