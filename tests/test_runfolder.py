"""Files under final names are complete, fingerprints are stable, and completeness is checked from the files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtrain.runfolder import (
    atomic_write,
    fingerprint,
    is_done,
    mark_done,
    publish_folder,
    remove_leftovers,
)


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as file:
        file.write("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half of the new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_folder_leaves_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "model"
    with publish_folder(final) as aside:
        (aside / "a").write_text("old")
    with pytest.raises(RuntimeError), publish_folder(final) as aside:
        (aside / "a").write_text("new")
        raise RuntimeError
    assert (final / "a").read_text() == "old"
    with publish_folder(final) as aside:
        (aside / "b").write_text("new")
    assert [path.name for path in final.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [final]


def test_done_is_for_one_fingerprint_and_whole_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    assert not is_done(tmp_path, "x")
    mark_done(tmp_path, "x")
    assert is_done(tmp_path, "x")
    assert not is_done(tmp_path, "y")
    (tmp_path / "a").write_text("ab")
    assert not is_done(tmp_path, "x")
    (tmp_path / "a").unlink()
    assert not is_done(tmp_path, "x")


@pytest.mark.parametrize("record", ["", "{", "[]", "3", '{"fingerprint": "x"}', '{"fingerprint": "x", "files": 3}'])
def test_a_damaged_record_is_not_done(tmp_path: Path, record: str) -> None:
    (tmp_path / "done.json").write_text(record)
    assert not is_done(tmp_path, "x")


def test_fingerprints() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint("a", "b") != fingerprint("ab")
    assert fingerprint(1) != fingerprint("1")
    with pytest.raises(ValueError):
        fingerprint(float("nan"))


WRITER = """
import sys, pathlib
from dtrain.runfolder import publish_folder
final = pathlib.Path(sys.argv[1])
number = 0
while True:
    with publish_folder(final) as aside:
        for name in "ab":
            (aside / name).write_text(str(number) * 100000)
    number += 1
    print(number, flush=True)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """After SIGKILL at any moment the folder is absent or whole: both files are from the same write."""
    final = tmp_path / "out"
    for milliseconds in (0, 3, 7, 11, 18):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(final)], stdout=subprocess.PIPE, env=os.environ)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if final.exists():
            a, b = (final / "a").read_text(), (final / "b").read_text()
            assert a == b
            assert len(a) >= 100000
        remove_leftovers(tmp_path)
        assert [path for path in tmp_path.iterdir() if path != final] == []
