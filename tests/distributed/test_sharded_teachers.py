"""Teachers through the command line under FSDP2 and ZeRO: the same models as under DDP, and training can change between
the engines.
"""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest

from tests.processes import dtrain, start

pytestmark = pytest.mark.distributed

RECIPE = """\
name: sharded
seed: 5
output_dir: {folder}/runs
data:
  train: {folder}/train.jsonl
  split: {{valid: 0.2, test: 0.1}}
  vocabulary: {{min_count: 1}}
teachers:
  - name: cnn
    model: {{type: textcnn, embedding: 12, filters: 8, dropout: 0}}
    epochs: 2
    batch_size: 16
    optimizer: {{type: adamw, lr: 0.01}}
  - &bert
    name: bert
    model: {{type: bert, size: tiny, hidden: 16, heads: 2, dropout: 0, vocabulary_size: 200}}
    epochs: 2
    batch_size: 16
    accumulation: 2
    activation_checkpointing: true
    optimizer: {{type: lamb, lr: 0.005}}
  - {{<<: *bert, name: early, stop_epoch: 1}}
students:
  - name: small
    model: {{type: bilstm, embedding: 8, hidden: 8}}
    epochs: 1
launch: {{processes: 2}}
report: {{latency: false}}
"""
TOPICS = {"sport": "球队比赛进球冠军", "food": "好吃餐厅美味火锅", "money": "股票基金银行利率"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    draw = random.Random(0)
    rows = []
    for topic in draw.choices(list(TOPICS), k=200):
        text = "".join(draw.choice(TOPICS[topic] + "的了是在我") for _ in range(draw.randint(3, 14)))
        rows.append(json.dumps({"text": text, "label": topic}, ensure_ascii=False) + "\n")
    (folder / "train.jsonl").write_text("".join(rows), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return path


def distance(one: Path, other: Path) -> float:
    """The largest relative distance of two models' weights, except the keys' biases, whose gradient consists of
    rounding errors.
    """
    from safetensors.torch import load_file

    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / (a[n].norm() + 1e-6)) for n in a if "key.bias" not in n)


@pytest.fixture(scope="module")
def reference(recipe: Path) -> Path:
    """The teachers under DDP."""
    out = recipe.parent / "ddp"
    dtrain("run", recipe, f"output_dir={out}", "--stages", "prepare,finetune")
    return out / "sharded" / "teachers"


@pytest.mark.parametrize(
    "way",
    [  # ZeRO's stages 1 and 2 are tested in test_engines.py
        "fsdp2",
        pytest.param("zero1", marks=pytest.mark.slow),
        pytest.param("zero2", marks=pytest.mark.slow),
        "zero3",
        "zero2_offload",
    ],
)
def test_teachers_do_not_depend_on_the_engine(recipe: Path, reference: Path, tmp_path: Path, way: str) -> None:
    from transformers import AutoModelForSequenceClassification

    ranks = 3 if way in ("fsdp2", "zero3") else 2
    changes = [f"output_dir={tmp_path}", f"launch.accelerate_config={way}", f"launch.processes={ranks}"]
    told = dtrain("run", recipe, *changes, "--stages", "prepare,finetune")
    for name in ("cnn", "bert", "early"):
        assert distance(tmp_path / "sharded" / "teachers" / name, reference / name) < 1e-4, name
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "sharded" / "teachers" / "bert")
    assert "teacher early: best accuracy at epoch 1:" in told
    # It was taken from the training of the other.
    assert "teacher bert: bert," in told and "teacher early: bert," not in told

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "sharded" / "tensorboard" / "teachers" / "bert")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {f"train/trust_ratio_{which}" for which in ("min", "median", "max")} <= scalars
    assert {"train/parameter_norm", "train/skipped_steps", "speed/tokens_per_second", "speed/model_tflops"} <= scalars
    assert "train/trust_ratios" in events.Tags()["histograms"]


def test_every_stage_runs_in_a_sharded_launch(recipe: Path, tmp_path: Path) -> None:
    """Students, stored knowledge and scores come from whole models on each rank."""
    dtrain("run", recipe, f"output_dir={tmp_path}", "launch.accelerate_config=zero3")
    results = json.loads((tmp_path / "sharded" / "report" / "results.json").read_text(encoding="utf-8"))
    assert {m["name"] for m in results["models"]} == {"cnn", "bert", "early", "small"}


def test_stopped_under_one_engine_and_continued_under_another(recipe: Path, tmp_path: Path) -> None:
    """ZeRO-2 on 2 ranks, then FSDP2 on 3, then one process alone, ends where DDP ends."""
    longer = ["teachers.bert.epochs=16", "teachers.cnn.epochs=1", "teachers.bert.optimizer.lr=0.001"]
    longer += ["teachers.early.epochs=16", "teachers.early.optimizer.lr=0.001"]
    expected = tmp_path / "undisturbed"
    dtrain("run", recipe, f"output_dir={expected}", *longer, "--stages", "prepare,finetune")
    changes = [f"output_dir={tmp_path}/moved", *longer]
    checkpoints = tmp_path / "moved" / "sharded" / "checkpoints" / "teachers" / "bert"
    seen = 0
    for way, ranks in (("zero2", 2), ("fsdp2", 3)):
        launch = [f"launch.accelerate_config={way}", f"launch.processes={ranks}"]
        stages = ["--stages", "prepare,finetune"]
        process = start(["-m", "dtrain", "run", recipe, *changes, *launch, *stages])
        deadline = time.monotonic() + 300
        while not any(int(path.name[5:]) > seen for path in checkpoints.glob("step-*")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 75, out + err
        *_, last = sorted(checkpoints.glob("step-*"))
        assert int(last.name[5:]) > seen
        seen = int(last.name[5:])
    dtrain("run", recipe, *changes, "launch.processes=1", "--stages", "prepare,finetune")
    moved, undisturbed = (folder / "sharded" / "teachers" / "bert" for folder in (tmp_path / "moved", expected))
    history = [json.loads((folder / "history.json").read_text(encoding="utf-8")) for folder in (moved, undisturbed)]
    losses = [[entry["loss"] for entry in entries] for entries in history]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage: 0"),
        ({"zero_optimization": {"stage": 2}, "optimizer": {"type": "Lamb", "params": {}}}, "optimizer: 'Lamb'"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "zero_force_ds_cpu_optimizer"),
        ({"zero_optimization": {"stage": 2}, "gradient_clipping": 7.0}, "gradient_clipping: 7.0"),
    ],
)
def test_what_cannot_be_exact_is_refused_before_anything_is_written(
    recipe: Path, tmp_path: Path, config: dict[str, object], told: str
) -> None:
    """Also when it is started by `accelerate launch`, which does not know what is refused."""
    (tmp_path / "ds.json").write_text(json.dumps(config), encoding="utf-8")
    yaml = {"distributed_type": "DEEPSPEED", "use_cpu": False, "num_machines": 1, "mixed_precision": "no"}
    yaml |= {
        "deepspeed_config": {"deepspeed_config_file": str(tmp_path / "ds.json")},
        "compute_environment": "LOCAL_MACHINE",
    }
    (tmp_path / "accelerate.yaml").write_text(json.dumps(yaml), encoding="utf-8")
    arguments = ["--config_file", tmp_path / "accelerate.yaml", "--num_processes", "2", "--main_process_port", "0"]
    launched = ["-m", "accelerate.commands.accelerate_cli", "launch", *arguments, "-m", "dtrain", "finetune"]
    process = start([*launched, recipe, f"output_dir={tmp_path}/runs"])
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.count(told) == 1, err
    assert not (tmp_path / "runs").exists()
