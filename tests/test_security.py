"""Security of a run: no code is run from files, the user's umask is kept, no secrets of the environment are written."""

from __future__ import annotations

import ast
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dtrain
from dtrain.errors import InputError

PACKAGE = Path(dtrain.__file__).parent
# Calls that bandit rates medium or high, and why they are kept.
EXPLAINED = {
    ("data/records.py", "B615"): "a data set's revision is the user's to name; rows are data, no code is run",
    ("data/vocabularies.py", "B615"): "a hub model's revision is the user's to name; trust_remote_code is off",
    ("models/folder.py", "B615"): "a model folder of our own, local",
    ("models/transformer.py", "B615"): "as for tokenizers; weights are safetensors or weights_only",
    ("recipe/load.py", "B506"): "the loader is a SafeLoader",
    ("report/pages.py", "B701"): "escaping is on for HTML and off for Markdown",
}


def calls() -> list[tuple[str, str, ast.Call]]:
    """(file:line, dotted name, call) of every call in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", ast.unparse(node.func), node))
    return found


def test_nothing_that_runs_code_from_a_file_is_called() -> None:
    wrong = []
    for place, name, call in calls():
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        unsafe = (
            (name in ("torch.load", "load_checkpoint_in_model") and options.get("weights_only") != "True")
            or (name.split(".")[0] in ("pickle", "joblib", "dill", "marshal") and name.endswith(("load", "loads")))
            or name in ("eval", "exec", "yaml.unsafe_load", "yaml.full_load", "os.system")
            or (name == "yaml.load" and options.get("Loader") != "_Loader")
            or options.get("allow_pickle") == "True"
            or options.get("trust_remote_code") == "True"
            or options.get("shell") == "True"
        )
        if unsafe:
            wrong.append(f"{place}: {name}")
    assert not wrong


def load_as_a_model(folder: Path) -> Any:
    return dtrain.load(folder)


def load_as_a_teachers_weights(folder: Path) -> Any:
    from dtrain.models import build
    from dtrain.recipe.architectures.transformers import BertSpec

    return build(BertSpec(type="bert", pretrained=str(folder)), vocabulary=30, labels=["a", "b"], pad_id=0)


@pytest.mark.parametrize("load", [load_as_a_model, load_as_a_teachers_weights])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_code_in_a_model_folder_is_not_run(load: Callable[[Path], Any], name: str, tmp_path: Path) -> None:
    """A pickle under the name that transformers once gave weights, or under the one it gives them now."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(**shape, intermediate_size=16)).save_pretrained(tmp_path)
    assert load(tmp_path) is not None
    (tmp_path / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"classifier.bias": Evil()}, tmp_path / "pickle.pt")
    shutil.copy(tmp_path / "pickle.pt", tmp_path / name)
    with pytest.raises(InputError):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "pickle.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # which proves that the test would notice it


def test_a_run_keeps_to_the_umask_and_copies_no_secret(tmp_path: Path) -> None:
    rows = '{"text": "abc", "label": "x"}\n{"text": "bcd", "label": "y"}\n'
    (tmp_path / "train.jsonl").write_text(rows * 20)
    recipe = {
        "name": "tiny",
        "output_dir": str(tmp_path / "runs"),
        "data": {"train": str(tmp_path / "train.jsonl")},
        "teachers": [{"name": "cnn", "model": {"type": "textcnn", "embedding": 4, "filters": 2}, "epochs": 1}],
        "launch": {"processes": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    secret = "s3cr3t-0f-the-environment"
    environment = os.environ | {"AWS_SECRET_ACCESS_KEY": secret, "HF_TOKEN": secret, "WANDB_API_KEY": secret}
    words = [sys.executable, "-m", "dtrain", "run", str(tmp_path / "recipe.yaml"), "--stages", "prepare,finetune"]
    subprocess.run(words, check=True, env=environment, umask=0o027, capture_output=True, timeout=200)
    paths = [tmp_path / "runs", *(tmp_path / "runs").rglob("*")]
    assert len(paths) > 20
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & 0o027, f"{path}: {mode:o}"
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_bandit_finds_nothing_unexplained() -> None:
    bandit = shutil.which("bandit")
    if bandit is None:
        pytest.skip("needs bandit on the PATH (pip install bandit, in an environment of its own)")
    words = [bandit, "-q", "-r", str(PACKAGE), "--severity-level", "medium", "-f", "json"]
    found = json.loads(subprocess.run(words, capture_output=True, text=True).stdout)["results"]
    findings = {(str(Path(one["filename"]).relative_to(PACKAGE)), one["test_id"]) for one in found}
    assert findings == EXPLAINED.keys()


@pytest.mark.slow
def test_no_known_vulnerability_in_what_is_pinned() -> None:
    audit = shutil.which("pip-audit")
    if audit is None:
        pytest.skip("needs pip-audit on the PATH (pip install pip-audit, in an environment of its own)")
    pinned = PACKAGE.parent / "launch" / "constraints.txt"
    words = [audit, "-r", str(pinned), "--no-deps", "--disable-pip", "-f", "json"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)["dependencies"]
    if all("skip_reason" in one for one in found):
        pytest.skip("no database of vulnerabilities can be reached from here")
    assert not [(one["name"], one["version"], one["vulns"]) for one in found if one.get("vulns")]
