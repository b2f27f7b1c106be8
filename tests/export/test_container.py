"""Exported models where there is neither torch nor dtrain, against `Predictor`, on raw text of all kinds."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from dtrain import Predictor
from dtrain.export.check import difference
from dtrain.export.folder import Wish, export_model
from dtrain.export.quantize import quantize
from dtrain.export.session import script_of
from dtrain.recipe.models import architectures
from tests.export.conftest import MODELS, NAMES, TEXTS

pytestmark = pytest.mark.distributed  # an environment is made and models are read in it: a minute

ROOT = Path(__file__).parent.parent.parent
NEEDED = (
    "numpy",
    "tokenizers",
    "onnxruntime",
    "flatbuffers",
    "packaging",
    "protobuf",
)  # the last three: onnxruntime's own
ANSWER = """
import importlib.util, json, sys
from pathlib import Path
found, asked = {}, json.load(sys.stdin)
for name, texts in asked["texts"].items():
    spec = importlib.util.spec_from_file_location("predict", Path(asked["root"]) / name / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found[name] = module.Model()(*texts)
json.dump({"answers": found, "modules": [n for n in ("torch", "dtrain", "transformers", "opencc") if n in sys.modules]}, sys.stdout)
"""


@pytest.fixture(scope="session")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that holds three packages and what they need."""
    folder = tmp_path_factory.mktemp("container") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-compile"]
    done = subprocess.run(
        [*pip, "-c", ROOT / "launch" / "constraints.txt", *NEEDED], capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        pytest.skip(f"an environment with {', '.join(NEEDED)} cannot be made: {reason}")
    return python


@pytest.fixture(scope="session")
def answers(container: Path, exported: Path, model_folders) -> dict[str, list]:
    asked = {"root": str(exported), "texts": {name: model.texts for name, model in model_folders.items()}}
    done = subprocess.run(
        [container, "-I", "-c", ANSWER], input=json.dumps(asked), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["modules"] == []
    return found["answers"]


def test_every_architecture_is_exported_here() -> None:
    able = {name for name, spec in architectures().items() if spec.graph is not None}
    assert {section["type"] for _, section in MODELS.values()} | {"multi_task"} == able


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_predictor(answers, model_folders, name) -> None:
    model = model_folders[name]
    ours = model.predictor()(*model.texts)
    found = difference(ours, answers[name])
    assert (found.rows, found.flips) == (len(TEXTS), 0)
    assert found.largest <= 1e-4
    # The test would see a model that answers everything alike.
    assert len({json.dumps(answer) for answer in ours}) > len(TEXTS) // 2
    if model.task == "tagging":
        assert sum(map(len, ours)) > 10


@pytest.mark.parametrize("name", ["textcnn", "siamese", "tagger", "marian"])
def test_the_code_of_a_card_runs(container: Path, exported: Path, name: str) -> None:
    card = (exported / name / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    done = subprocess.run([container, "-c", code], cwd=exported / name, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert isinstance(ast.literal_eval(done.stdout), list)


def test_the_command_line_of_a_folder(container: Path, exported: Path, model_folders) -> None:
    """One text a line, pairs with a tab between."""
    for name, lines in {"textcnn": ["電腦裡面", "Ａ b"], "siamese": ["電腦\t里面", "a\tb"]}.items():
        done = subprocess.run(
            [container, exported / name / "predict.py"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=100,
            check=True,
        )
        columns = [list(column) for column in zip(*(line.split("\t") for line in lines), strict=True)]
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert difference(Predictor(model_folders[name].folder)(*columns), found).flips == 0
    # One text is no pair: it was answered as a text alone.
    alone = [container, exported / "siamese" / "predict.py"]
    done = subprocess.run(alone, input="a\n", capture_output=True, text=True, timeout=100)
    assert done.returncode and "ValueError: this model reads 2 text(s) a row" in done.stderr and not done.stdout
    assert subprocess.run(alone, input="", capture_output=True, text=True, timeout=100, check=True).stdout == ""


@pytest.mark.parametrize(
    "name",
    ["bert", "textcnn", "bilstm", "fasttext", "siamese", "tagger", "multi_exit", "several-names", "several-about"],
)
def test_int8_answers_are_close(exported: Path, model_folders, tmp_path, name) -> None:
    """Weights of random models are harder to round than trained ones: most answers stay, and numbers move a little."""
    model = model_folders[name]
    shutil.copytree(exported / name, tmp_path / name)
    for path in (tmp_path / name).glob("*.onnx"):
        quantize(path)
    sizes = [sum(path.stat().st_size for path in (root / name).glob("*.onnx")) for root in (exported, tmp_path)]
    assert sizes[1] < sizes[0]
    ours = model.predictor()(*model.texts)
    found = difference(ours, script_of(tmp_path / name).Model()(*model.texts))
    assert found.flips <= len(TEXTS) // 2
    assert found.largest < 0.2


@pytest.mark.parametrize("name", ["bilstm", "siamese", "fasttext", "multi_exit", "nezha_tagger", "marian"])
def test_programs_of_torch_export(model_folders, tmp_path, name) -> None:
    """The same folder for torch, whose `predict.py` opens another kind of file; texts shorter than the example, too."""
    model = model_folders[name]
    export_model(Wish(model.folder, name, "torch"), tmp_path / name)
    text = (tmp_path / name / "predict.py").read_text()
    assert "onnxruntime" not in text and "import torch" in text
    found = difference(Predictor(model.folder)(*model.texts), script_of(tmp_path / name).Model()(*model.texts))
    assert found.flips == 0 and found.largest <= 1e-4


def test_what_a_folder_holds(exported: Path) -> None:
    for name in NAMES:
        files = {path.name for path in (exported / name).iterdir()} - {"__pycache__"}
        needed = {"README.md", "graph.onnx", "metrics.json", "normalization.json", "predict.py", "settings.json"}
        assert needed | {"tokenizer.json"} <= files
        lines = (exported / name / "predict.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 100
        assert not any("dtrain" in line for line in lines if line.lstrip().startswith(("import", "from")))
    assert {path.name for path in (exported / "multi_exit").glob("*.onnx")} == {"graph.onnx", "graph-2.onnx"}
    assert (exported / "marian_two" / "target_tokenizer.json").is_file()
