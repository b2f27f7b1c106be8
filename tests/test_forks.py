"""Processes that the launcher forks: waiting for them, signals to them and their output work as with new interpreters.

Forks in real launches, their faults and the end of their launcher are tested in `distributed/test_faults.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dtrain.__main__
from dtrain import forks, launch
from dtrain.recipe import load_recipe
from dtrain.stages import of_run
from tests.processes import run_each


def test_what_a_fork_says_and_its_exit_code(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    absent = tmp_path / "absent.yaml"
    assert forks.Forked(["check", str(absent)], dict(os.environ)).wait(60) == 2
    assert str(absent) in capfd.readouterr().err
    listed = forks.Forked(["recipes"], dict(os.environ))
    assert listed.wait(60) == listed.poll() == listed.returncode == 0
    assert "quickstart" in capfd.readouterr().out


def test_a_fork_has_its_own_variables_session_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observed on a command that runs for a long time."""
    monkeypatch.setattr(dtrain.__main__, "entry", lambda: time.sleep(60))
    forked = forks.Forked(["recipes"], {"RANK": "3", "PATH": os.environ["PATH"]})
    try:
        assert os.getsid(forked.pid) == forked.pid
        assert Path(f"/proc/{forked.pid}/comm").read_text() == "dtrain rank 3\n"
        with pytest.raises(subprocess.TimeoutExpired):
            forked.wait(0.05)
        assert forked.poll() is None
        forked.send_signal(signal.SIGTERM)  # the default action: the fork does not have the handlers of this process
        assert forked.wait(60) == -signal.SIGTERM
        forked.send_signal(signal.SIGTERM)  # the process has ended: nothing happens
    finally:
        if forked.returncode is None:
            os.kill(forked.pid, signal.SIGKILL)


def test_only_a_process_that_computed_nothing_forks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ways = [
        "from dtrain import forks; import dtrain.launch, dtrain.stages.check; print(forks.possible())",
        "import torch; from dtrain import forks; print(forks.possible())",
    ]
    done = run_each(ways, "import sys", tmp_path)
    assert [one.stdout.strip() for one in done] == ["True", "False"], [one.stderr for one in done]


RECIPE = """\
name: forks
output_dir: RUNS
data: {train: train.txt, format: tsv, header: false, columns: {label: 0, text: 1}, split: {valid: 0.2}}
teachers: [{name: large, model: {type: bert, size: tiny}}]
students: [{name: one, model: {type: bilstm}}, {name: two, model: {type: textcnn}}]
launch: {processes: 2, stages: {prepare: {processes: 1}, finetune: {processes: 1}, precompute: {processes: 1}}}
"""


@pytest.mark.parametrize(
    ("gpus", "own", "possible", "forked"),
    [(0, True, True, True), (2, True, True, False), (0, False, True, False), (0, True, False, False)],
)
def test_who_forks_and_what_is_imported_when(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, own: bool, possible: bool, forked: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("a\tred\nb\tblue\n" * 8, encoding="utf-8")
    Path("forks.yaml").write_text(RECIPE.replace("RUNS", str(tmp_path / "runs")), encoding="utf-8")
    recipe = load_recipe("forks.yaml", [])
    asked: list[launch.Imports | None] = []

    def start(way: launch.Way, words: list[str], *, imports: launch.Imports | None) -> int:
        asked.append(imports)
        return 0

    monkeypatch.setattr(launch, "launch", start)
    monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(forks, "possible", lambda: possible)
    names = [stage.name for stage in of_run(recipe)]
    assert launch.run_everything(recipe, names, ["forks.yaml"], own_process=own) == 0
    if not forked:
        assert set(asked) == {None}
        return
    one, several = asked
    assert one is not None and several is not None
    assert one.first == [f"dtrain.stages.{name}" for name in ("runner", "prepare", "finetune", "precompute")]
    assert "dtrain.stages.distill" in one.later and "dtrain.stages.report" in several.first
    for imports in (one, several):
        assert {"dtrain.models.transformer", "dtrain.models.bilstm", "dtrain.accelerate_launch"} <= {*imports.later}


def test_a_module_that_cannot_be_imported_is_left_to_those_who_need_it() -> None:
    forks.load(["dtrain.absent", "dtrain.plan"])
    assert "dtrain.plan" in sys.modules
