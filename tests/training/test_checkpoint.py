"""Checkpoints: they are complete or absent, damaged ones are skipped, and only the latest are kept."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dtrain.recipe.training import Student
from dtrain.runfolder import publish_folder
from dtrain.training.checkpoint import Checkpoints
from dtrain.training.job import checkpoints_of


def write(folder: Path, identity: str, *steps: int, keep: int = 2) -> None:
    written = Checkpoints(folder, identity, keep=keep)
    for step in steps:
        written.save(step, {"position": {"step": step, "score": 0.1}}, {"x": torch.full((3,), float(step))}, {})
    written.close()
    written.check()


def newest_step(folder: Path, identity: str = "x") -> int | None:
    found = Checkpoints(folder, identity).newest()
    return found[0]["step"] if found else None


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_one_of_another_recipe_does_not_push_out_the_new_one(tmp_path: Path) -> None:
    write(tmp_path, "old", 500)
    write(tmp_path, "new", 100)
    assert newest_step(tmp_path, "new") == 100
    assert newest_step(tmp_path, "old") is None


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    write(tmp_path, "x", 2, 4, 6, 8, 10, keep=3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"step-{step:08d}" for step in (6, 8, 10)]


def test_steps_go_on_while_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr("dtrain.training.checkpoint.save_file", lambda *a: gate.wait(30) and save_file(*a))
    written = Checkpoints(tmp_path, "x")
    written.save(2, {}, {"x": torch.ones(1)}, {})  # would wait for ever for the gate if it wrote in this thread
    written.check()
    assert newest_step(tmp_path) is None
    gate.set()
    written.wait()
    assert newest_step(tmp_path) == 2
    written.close()


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_one_is_skipped(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "x", 100, 200)
    file = tmp_path / "step-00000200" / name
    flip(file, file.read_bytes().index(b"0.1") + 2 if name == "state.json" else file.stat().st_size - 1)
    if name == "state.json":
        assert json.loads(file.read_text())["position"]["score"] == 0.0  # still valid JSON
    assert newest_step(tmp_path) == 100
    assert f"step-00000200: checkpoint skipped: {name} is damaged" in capsys.readouterr().err


def test_a_damaged_one_does_not_push_out_the_new_one(tmp_path: Path) -> None:
    write(tmp_path, "x", 100, 500)
    flip(tmp_path / "step-00000500" / "tensors.safetensors", -1)
    assert newest_step(tmp_path) == 100
    write(tmp_path, "x", 200, keep=1)
    assert newest_step(tmp_path) == 200
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000200"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"precision": "bf16"}, "made with precision 'fp32' (now 'bf16')"),
        ({"data": {"train": "b.jsonl", "split": {"valid": 0.1}}}, "made with data.train 'a.jsonl' (now 'b.jsonl')"),
        ({"data": {"train": "a.jsonl", "split": {"valid": 0.2}}}, "made with data.split.valid 0.1 (now 0.2)"),
        ({"seed": 4}, "made with seed 3 (now 4)"),
        ({}, "the settings are the same, but its data or its teachers were others"),
    ],
)
def test_how_another_ones_settings_differ_is_told(
    tmp_path: Path, changes: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def checkpoints(identity: str, *, seed: int = 3, precision: str = "fp32", data: Any = None) -> Checkpoints:
        spec = Student.model_validate({"name": "s", "model": {"type": "bilstm"}, "seed": seed})
        engine = SimpleNamespace(precision=precision)
        data = data or {"train": "a.jsonl", "split": {"valid": 0.1}}
        job: Any = SimpleNamespace(
            identity=identity, engine=engine, spec=spec, data=data, peers=False, checkpoints=tmp_path
        )
        return checkpoints_of(job)

    written = checkpoints("before")
    written.save(2, {}, {"x": torch.ones(1)}, {})
    written.close()
    assert checkpoints("now", **changes).newest() is None
    assert capsys.readouterr().err.endswith(f"step-00000002: checkpoint not used: {told}\n")


def test_all_of_a_folder_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, plain = [], os.fsync

    def fsync(handle: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        plain(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with publish_folder(tmp_path / "final") as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "file").write_text("x")
    assert {*flushed[:-1]} == {aside, aside / "inner", aside / "inner" / "file"}
    assert flushed[-1] == tmp_path  # flushed after the rename
