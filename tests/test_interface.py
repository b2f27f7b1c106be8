"""The public interface of `import dtrain`, and its import time."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import dtrain
from dtrain import api, kept
from dtrain.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, Stopped

PROMISED = {
    "DtrainError": None,
    "InputError": None,
    "Predictor": ["folder", "device", "batch_tokens"],
    "StoreReader": None,
    "__version__": None,
    "check": ["recipe", "overrides"],
    "load": ["path", "device"],
    "run": ["recipe", "overrides"],
}


def test_the_promise() -> None:
    """Removing a name or an argument breaks users' programs: this list may only grow."""
    assert set(dtrain.__all__) == set(PROMISED) <= set(dir(dtrain))
    for name, arguments in PROMISED.items():
        found = getattr(dtrain, name)
        assert name == "__version__" or inspect.getdoc(found)
        if arguments is not None:
            assert list(inspect.signature(found).parameters)[: len(arguments)] == arguments
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        dtrain.absent  # noqa: B018
    # The test of the wheel checks that the wheel contains it.
    assert (Path(dtrain.__file__).parent / "py.typed").is_file()


def test_importing_it_is_light() -> None:
    code = "import sys, dtrain; print([name for name in ('torch', 'numpy', 'pydantic', 'yaml') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_check_gives_the_resolved_recipe() -> None:
    recipe = dtrain.check("quickstart", seed=7, **{"data.max_length": 33})
    assert (recipe.seed, recipe.data.max_length) == (7, 33)
    with pytest.raises(dtrain.InputError) as refused:
        dtrain.check("quickstart", **{"students.0.epochs": -1, "data.max_length": 1e9})
    assert len(refused.value.problems) == 2 and "students.0.epochs" in refused.value.problems[1]


def test_run_says_how_it_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real launch is run by the test of the manual's page about prediction."""
    ends, asked = [EXIT_DONE, EXIT_STOPPED, EXIT_BAD_INPUT, EXIT_FAILED], []

    def started(recipe: object, stages: list[str], words: list[str]) -> int:
        asked.append((stages, words))
        return ends[len(asked) - 1]

    monkeypatch.setattr(api, "run_everything", started)
    overrides = {"output_dir": str(tmp_path), "students.0.optimizer.lr": 1e-5}
    assert dtrain.run("quickstart", **overrides) == tmp_path / "quickstart"
    assert asked[0][1] == ["quickstart", f'output_dir="{tmp_path}"', "students.0.optimizer.lr=1e-05"]
    assert asked[0][0][0] == "prepare" and asked[0][0][-1] == "report"
    for end in (Stopped, dtrain.InputError, dtrain.DtrainError):
        with pytest.raises(end, match="ended with exit code"):
            dtrain.run("quickstart", **overrides)
    assert not kept.is_run_folder(tmp_path / "quickstart")
