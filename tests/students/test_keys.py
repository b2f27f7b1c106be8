"""The recipe's keys for many students: what is refused, and which keys change which fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe import Recipe, dump_recipe, load_recipe
from dtrain.students.groups import Group

RECIPE = """\
name: r
seed: 3
data: {{train: package:samples/train.jsonl}}
students:
  - name: a
    model: {{type: textcnn}}
    {a}
  - name: b
    model: {{type: bilstm}}
    {b}
{more}
"""


def load(tmp_path: Path, a: str = "", b: str = "", more: str = "") -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.format(a=a, b=b, more=more), encoding="utf-8")
    return load_recipe(str(path))


@pytest.mark.parametrize(
    ("a", "b", "more", "problem"),
    [
        ("peers: x", "peers: y", "", "r.yaml:7: students.0.peers (x): a is alone"),
        ("peers: x", "{peers: x, patience: 2}", "", "students.1 (b).patience: is not for peers"),
        ("peers: x", "{peers: x, epochs: 9}", "", "students.1 (b).epochs: must be that of its peer a"),
        ("peers: x", "peers: x", "search: {epochs: [1]}", "r.yaml:11: search: peers cannot be stopped one by one"),
        ("metric: f1", "", "search: {epochs: [1]}", "search: students must have one `metric` to be compared"),
        ("", "", "search: {epochs: [2, 1]}", "search.epochs: must ascend, found [2, 1]"),
        ("", "epochs: 9", "search: {epochs: [1, 3]}", "r.yaml:11: search.epochs: 3 is not before the end of student a"),
        ("", "", "search: {epochs: [1], keep: 1.5}", "search.keep: input should be less than 1, found 1.5"),
        ("", "", "placement: {fuse: maybe}", "placement.fuse: allowed: 'auto', 'always' or 'never', found 'maybe'"),
        ("parallel: model", "", "", "students.0.parallel: allowed: 'data', found 'model'"),
    ],
)
def test_refused(tmp_path: Path, a: str, b: str, more: str, problem: str) -> None:
    b = "\n    ".join(b.strip("{}").split(", "))
    with pytest.raises(InputError) as refused:
        load(tmp_path, a, b, more)
    assert any(problem in line for line in refused.value.problems), refused.value.problems


def test_peers_have_no_teachers_unless_named(tmp_path: Path) -> None:
    recipe = load(tmp_path, "peers: x", "peers: x")
    assert [student.teachers for student in recipe.students] == [[], []]
    assert [loss.type for loss in recipe.students[0].losses or []] == ["cross_entropy"]


def test_what_makes_a_student_another(tmp_path: Path) -> None:
    def of(a: str = "", b: str = "", more: str = "") -> tuple[str, str]:
        plan = Plan(load(tmp_path, a, b, more))
        return plan.model("students", "a"), plan.model("students", "b")

    plain = of()
    assert of(more="placement: {fuse: always}") == plain
    assert of("parallel: data") == plain
    assert of(more="search: {epochs: [1]}") == plain
    assert of(more="placement: {share_order: false}") == plain  # both use the recipe's seed
    assert of("seed: 4")[0] != of("seed: 4", more="placement: {share_order: false}")[0]
    peers = of("peers: x", "peers: x")
    assert peers[0] != plain[0] and peers[1] != plain[1]
    assert of("peers: x", "peers: x\n    optimizer: {lr: 0.5}")[0] != peers[0]
    apart = "placement: {share_order: false}"  # cannot be used with peers, which share each batch
    assert of("peers: x\n    seed: 4", "peers: x\n    seed: 5", apart) == of(
        "peers: x\n    seed: 4", "peers: x\n    seed: 5"
    )


def test_loaded_again_it_is_the_same(tmp_path: Path) -> None:
    recipe = load(tmp_path, "peers: x", "peers: x", "placement: {fuse: always, share_order: false}")
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(again)) == recipe
    names = [student.name for student in recipe.students]
    assert [Plan(load_recipe(str(again))).model("students", n) for n in names] == [
        Plan(recipe).model("students", n) for n in names
    ]


def test_a_cluster_job_has_whole_sets_of_peers(tmp_path: Path) -> None:
    recipe = load(tmp_path, "peers: x", "peers: x")
    assert [len(Group(n, 2).own(recipe).students) for n in range(2)] == [2, 0]
    with pytest.raises(InputError, match="without --group"):
        Group(0, 2).own(load(tmp_path, more="search: {epochs: [1]}"))
