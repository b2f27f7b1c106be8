"""The registry: which losses and parameters are allowed, and that asking needs no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from dtrain.losses import coerce_parameters, find_loss, loss_names, registry
from dtrain.losses.objective import build_losses
from dtrain.recipe import dump_recipe, load_recipe
from dtrain.recipe.training import LossSpec


def test_names_and_needs() -> None:
    assert {"cross_entropy", "logit_regression", "soft_targets"} <= set(loss_names("classification"))
    assert {"tag_likelihood", "emission_regression", "marginal_matching"} <= set(loss_names("tagging"))
    of_both = set(loss_names("classification")) & set(loss_names("tagging"))
    assert "hidden_mse" in of_both and all(find_loss(name).inside for name in of_both)
    assert find_loss("cross_entropy").teacher_output is None
    assert find_loss("soft_targets").teacher_output == "logits"
    assert find_loss("marginal_matching").teacher_output == "marginals"


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("soft_target", {}, r"^type: unknown loss 'soft_target'; did you mean 'soft_targets'\? \(allowed: "),
        ("xyzzy", {}, r"^type: unknown loss 'xyzzy' \(allowed: attention_kl, attention_mse, "),
        ("soft_targets", {"temprature": 2}, r"^temprature: unknown key; did you mean 'temperature'\?"),
        ("soft_targets", {"nil": 2}, r"^nil: unknown key \(allowed: type, weight, teachers, weighting, temperature\)$"),
        ("cross_entropy", {"wieght": 2}, r"did you mean 'weight'"),
        ("logit_regression", {"temperature": 2}, r"^temperature: unknown key \(allowed: type, weight, tea"),
        ("soft_targets", {"temperature": 0}, r"^temperature: input should be greater than 0, found 0$"),
        ("soft_targets", {"temperature": float("inf")}, r"^temperature: input should be a finite number"),
        ("soft_targets", {"temperature": float("nan")}, r"^temperature: "),
        ("soft_targets", {"temperature": "hot"}, r"^temperature: input should be a valid n.*found 'hot'$"),
        ("cross_entropy", {"label_smoothing": 1}, r"^label_smoothing: input should be less than 1, found 1$"),
        ("cross_entropy", {"label_smoothing": -0.1}, r"^label_smoothing: .*greater than or equal to 0"),
    ],
)  # fmt: skip
def test_what_is_refused(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coerce_parameters(name, parameters)


def test_unknown_loss_is_not_found() -> None:
    with pytest.raises(ValueError, match="unknown loss 'nil'"):
        find_loss("nil")


def test_parameters_are_converted_and_completed() -> None:
    assert coerce_parameters("soft_targets", {"temperature": "1e-3"}) == {"temperature": 0.001}
    assert coerce_parameters("soft_targets", {"temperature": 3}) == {"temperature": 3.0}
    assert coerce_parameters("soft_targets", {}) == {"temperature": 2.0}
    assert coerce_parameters("cross_entropy", {}) == {"label_smoothing": 0.0, "class_weights": None}
    assert coerce_parameters("logit_regression", {}) == {}


def test_a_recipe_is_checked_by_it() -> None:
    assert LossSpec.model_validate({"type": "soft_targets", "temperature": 4}).parameters() == {"temperature": 4}
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        LossSpec.model_validate({"type": "soft_targets", "temperatur": 4})


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))
    yield


@pytest.mark.usefixtures("scratch_registry")
def test_a_new_loss_is_a_function_and_a_line() -> None:
    @registry.register("logits", "labels", "teachers.logits")
    def hinge(
        student_logits: NotImportedHere,  # type: ignore[name-defined]  # noqa: F821
        labels: NotImportedHere,  # type: ignore[name-defined]  # noqa: F821
        teacher_logits: NotImportedHere,  # type: ignore[name-defined]  # noqa: F821
        *,
        margin: Annotated[float, Field(gt=0)] = 1.0,
        power: int,
    ) -> None: ...

    assert find_loss("hinge").teacher_output == "logits"
    assert coerce_parameters("hinge", {"power": "2"}) == {"margin": 1.0, "power": 2}
    with pytest.raises(ValueError, match="^power: field required"):
        coerce_parameters("hinge", {})


@pytest.mark.usefixtures("scratch_registry")
def test_a_loss_with_weights_is_a_class_and_a_line() -> None:
    """Its constructor's keyword-only arguments are its keys; what else the constructor takes is not the recipe's."""

    @registry.register("features", "teachers.features", name="regressor")
    class Regressor:
        def __init__(self, width: NotImportedHere, *, hidden: Annotated[int, Field(gt=0)] = 8) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    @registry.register("logits")
    class plain: ...

    found = find_loss("regressor")
    assert found.stateful and found.function is Regressor and found.teacher_output == "features"
    assert coerce_parameters("regressor", {"hidden": "2"}) == {"hidden": 2}
    with pytest.raises(ValueError, match="^width: unknown key"):
        coerce_parameters("regressor", {"width": 2})
    assert find_loss("plain").stateful and coerce_parameters("plain", {}) == {}
    assert not find_loss("soft_targets").stateful


@pytest.mark.usefixtures("scratch_registry")
def test_a_recipe_uses_a_new_loss(tmp_path: Path) -> None:
    """The function, its line, and a recipe that names it: read, resolved, written out, and computed."""

    @registry.register("logits", "teachers.logits")
    def largest_difference(student_logits: Any, teacher_logits: Any, *, factor: float = 1.0) -> Any:
        return factor * (student_logits - teacher_logits.mean(0)).abs().amax(-1)

    path = tmp_path / "recipe.yaml"
    loss = "{type: largest_difference, factor: 2, weight: {start: 1, until: 0.5}}"
    path.write_text(
        "name: new\ndata: {train: a.jsonl}\nteachers: [{name: t, model: {type: textcnn}}]\n"
        f"students: [{{name: s, model: {{type: bilstm}}, losses: [{loss}, {{type: cross_entropy}}]}}]\n"
    )
    recipe = load_recipe(str(path))
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe
    import torch

    losses = build_losses((recipe.students[0].losses or [])[:1])
    given = {"logits": torch.zeros(1, 2)}, {"t": {"logits": torch.tensor([[3.0, -4.0]])}}, torch.tensor([False])
    for progress, total in ((0.0, 8.0), (0.25, 4.0), (0.5, 0.0), (0.9, 0.0)):
        found, sums, counts = losses(*given, progress=progress)
        assert (found.item(), sums["largest_difference"].item(), counts["largest_difference"].item()) == (total, 8, 1)


@pytest.mark.usefixtures("scratch_registry")
def test_a_student_learns_by_a_new_loss(tmp_path: Path) -> None:
    """Through every stage, from the store: the student's answers come near to its teacher's, whom nothing else tells."""

    @registry.register("logits", "teachers.logits")
    def squares(student_logits: Any, teacher_logits: Any) -> Any:
        return (student_logits - teacher_logits.mean(0)).square().sum(-1)

    from dtrain.plan import Plan
    from dtrain.runfolder import read_json
    from dtrain.runtime.distributed import connect
    from dtrain.stages import distill, finetune, precompute, prepare

    rows = [f'{{"text": "{text}", "label": "{text[0]}"}}\n' for text in ("ab", "ba", "aab", "bba") * 12]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    model = "model: {type: fasttext, embedding: 4, buckets: 16, dropout: 0}, batch_size: 8, optimizer: {lr: 0.05}"
    (tmp_path / "recipe.yaml").write_text(
        f"name: new\noutput_dir: {tmp_path}\ndata: {{train: {tmp_path}/a.jsonl, vocabulary: {{min_count: 1}}}}\n"
        f"teachers: [{{name: t, {model}}}]\nstudents: [{{name: s, {model}, epochs: 9, losses: [{{type: squares}}]}}]\n"
    )
    recipe = load_recipe(str(tmp_path / "recipe.yaml"))
    plan, world = Plan(recipe), connect()
    for stage in (prepare, finetune, precompute, distill):
        stage.run(recipe, world, plan.folder)
    history = read_json(plan.folder.model("students", "s") / "history.json")
    squares_seen = [seen["squares"] for seen in history if seen["split"] == "train"]
    assert len(squares_seen) == 9 and squares_seen[-1] < 0.05 * squares_seen[0]


@pytest.mark.usefixtures("scratch_registry")
def test_registration_mistakes_are_refused() -> None:
    def cross_entropy(student_logits: object, labels: object) -> None: ...

    def typed(student_logits: object, *, weight: float = 1.0) -> None: ...

    with pytest.raises(ValueError, match="registered twice"):
        registry.register("logits", "labels")(cross_entropy)
    with pytest.raises(ValueError, match="'weight' is a key of every loss"):
        registry.register("logits")(typed)
    with pytest.raises(ValueError, match=r"needs logits, label \(allowed: classification: logits, features, "):
        registry.register("logits", "label")(typed)
    with pytest.raises(ValueError, match="needs logits, mask"):  # of two tasks
        registry.register("logits", "mask")(typed)


def test_checking_recipes_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from dtrain.losses import find_loss\n"
        "from dtrain.recipe.training import LossSpec\n"
        "spec = LossSpec.model_validate({'type': 'soft_targets', 'temperature': 3})\n"
        "spec.parameters(); find_loss('soft_targets')\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_new_file_in_the_folder_is_found(tmp_path: Path) -> None:
    """One function and one registration line; here in a copy of the package."""
    import shutil

    import dtrain

    copy = tmp_path / "dtrain"
    shutil.copytree(Path(dtrain.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "losses" / "mine.py").write_text(
        "from dtrain.losses.registry import register\n\n\n"
        "@register('logits')\ndef flat(student_logits, *, scale: float = 2.0):\n    return scale * student_logits.sum(-1)\n"
    )
    code = "import sys; from dtrain.losses import loss_names; print('flat' in loss_names(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
