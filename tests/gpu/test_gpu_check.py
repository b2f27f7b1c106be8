"""`launch/gpu_check.sh`: the time limits of its parts add up to the promised total, results survive a part that dies,
and wheels are rewritten completely.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("gpus", "minutes"), [(1, 8), (8, 20)])
def test_the_limits_of_its_parts_add_up(
    gpus: int, minutes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = script("gpu_parts")
    monkeypatch.setattr(parts, "GPUS", gpus)
    asked = parts.parts(tmp_path)
    assert sum(part.seconds for part in asked) <= 60 * minutes
    assert any("several" in " ".join(part.words) for part in asked) == (gpus > 1)
    for part in asked:
        for word in part.words:
            assert not word.startswith("tests/") or (ROOT / word).is_file(), word


def test_a_part_that_hangs_ends_and_the_page_has_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = script("gpu_parts")
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    asked = [
        parts.Part("figures", "prints", ["-c", "print('words'); print('{\"tokens_per_second\": 7}')"], 20),
        parts.Part("hangs", "with a child", ["-c", child], 1),
        parts.Part("tests", "fails", ["-c", "print('2 failed, 3 passed in 1 s'); raise SystemExit(1)"], 20),
    ]
    monkeypatch.setattr(parts, "TRIED", False)
    monkeypatch.setattr(parts, "GPUS", 1)
    monkeypatch.setattr(parts, "parts", lambda out: asked)
    monkeypatch.setattr(parts, "versions", lambda: {"torch": "2"})
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", str(tmp_path)])
    assert parts.main() == 1
    found = {part.name: json.loads((tmp_path / f"{part.name}.json").read_text()) for part in asked}
    assert [found[part.name]["code"] for part in asked] == [0, 124, 1]
    assert found["figures"]["figures"] == {"tokens_per_second": 7}
    assert found["tests"]["tests"] == {"failed": 2, "passed": 3}
    page = (tmp_path / "page.md").read_text()
    assert "| hangs | with a child |" in page and "## tests: how it ended" in page and '"tokens_per_second": 7' in page


def test_a_run_that_dies_has_the_parts_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = script("gpu_parts")
    asked = [parts.Part(name, "prints", ["-c", "print('words')"], 20) for name in ("first", "second", "third")]
    run = parts.run

    def dies(part: Any, out: Path) -> Any:
        if part.name == "second":
            raise KeyboardInterrupt
        return run(part, out)

    monkeypatch.setattr(parts, "run", dies)
    monkeypatch.setattr(parts, "TRIED", True)
    monkeypatch.setattr(parts, "parts", lambda out: asked)
    monkeypatch.setattr(parts, "versions", lambda: {"torch": "2"})
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        parts.main()
    assert json.loads((tmp_path / "first.json").read_text())["code"] == 0
    page = (tmp_path / "page.md").read_text()
    assert "words" in page and "| second | prints | | not begun |" in page
    # One part is run again, and the results of the others are kept.
    monkeypatch.setattr(parts, "run", run)
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", str(tmp_path), "third"])
    assert parts.main() == 0
    page = (tmp_path / "page.md").read_text()
    assert page.count("| 0 |") == 2 and page.count("not begun") == 1
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", str(tmp_path), "fourth"])
    assert parts.main() == 2


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "launch" / "gpu_parts.py"), str(tmp_path)]
    done = subprocess.run(
        words, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 2
    assert "torch sees no GPU here" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_wheel_without_what_is_not_used_is_whole(tmp_path: Path) -> None:
    wheels = script("gpu_wheels")
    before, after = tmp_path / "a-1-py3-none-any.whl", tmp_path / "b.whl"
    with zipfile.ZipFile(before, "w") as file:
        file.writestr("a/code.py", "x = 1\n")
        file.writestr("a/tests/test.py", "y = 2\n")
        file.writestr("a-1.dist-info/RECORD", "stale")
    wheels.write_slim(before, after, r"^a/tests/")
    with zipfile.ZipFile(after) as file:
        assert file.testzip() is None
        assert file.namelist() == ["a/code.py", "a-1.dist-info/RECORD"]
        record = file.read("a-1.dist-info/RECORD").decode().splitlines()
    assert record[0].startswith("a/code.py,sha256=") and record[0].endswith(",6")
    assert record[1] == "a-1.dist-info/RECORD,,"
