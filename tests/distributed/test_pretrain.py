"""Pre-training through the command line: every way of sharding gives the same model, stopping changes nothing, and a
teacher starts from the model.
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
name: pre
seed: 5
output_dir: {folder}/runs
pretrain:
  model: {{type: {model}, size: tiny, hidden: 16, heads: 2, dropout: 0, vocabulary_size: 150}}
  corpus: {{sources: [{{path: {folder}/text.txt, documents: {documents}}}], held_out: 0.1, separate: {separate}}}
  next_sentence: {pairs}
  masking: {{ngram: 2}}
  phases:
    - {{max_length: 16, epochs: 1, batch_size: 24, accumulation: 2, optimizer: {{type: lamb, lr: 0.01}}}}
    - {{max_length: 32, epochs: 2, batch_size: 12, optimizer: {{type: adamw, lr: 0.002}}}}
data:
  train: {folder}/train.jsonl
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
teachers:
  - name: teacher
    model: {{type: {model}, pretrained: pretrain}}
    epochs: 1
launch: {{processes: 2}}
report: {{latency: false}}
"""
WORDS = ["球队", "比赛", "进球", "冠军", "好吃", "餐厅", "美味", "火锅", "股票", "基金", "银行", "利率"]


def write_recipe(folder: Path, model: str, separate: bool, pairs: bool = False) -> Path:
    """Documents have one line, or four with next-sentence prediction."""
    draw = random.Random(0)
    lines = ["".join(draw.choices(WORDS, k=draw.randint(3, 9))) + "。\n" for _ in range(400 if pairs else 150)]
    if pairs:
        lines = ["".join(lines[start : start + 4]) + "\n" for start in range(0, len(lines), 4)]
    (folder / "text.txt").write_text("".join(lines), encoding="utf-8")
    rows = [{"text": "".join(draw.choices(WORDS, k=4)), "label": "ab"[n % 2]} for n in range(40)]
    dumped = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "train.jsonl").write_text("".join(dumped), encoding="utf-8")
    path = folder / "recipe.yaml"
    values = {"separate": str(separate).lower(), "pairs": str(pairs).lower(), "documents": "blank" if pairs else "line"}
    path.write_text(RECIPE.format(folder=folder, model=model, **values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("pretrain"), "nezha", separate=False)


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def distance(one: Path, other: Path) -> float:
    """The largest relative distance of two models' weights, except the keys' biases, whose gradient consists of
    rounding errors.
    """
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / (a[n].norm() + 1e-6)) for n in a if "key.bias" not in n)


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """The models that one process trains."""
    out = recipe.parent / "alone"
    dtrain("pretrain", recipe, f"output_dir={out}")
    return out / "pre" / "pretrain"


@pytest.mark.parametrize(("way", "ranks"), [("ddp", 3), ("fsdp2", 2), ("zero3", 2)])
def test_the_model_does_not_depend_on_how_it_is_spread(
    recipe: Path, alone: Path, tmp_path: Path, way: str, ranks: int
) -> None:
    changes = [f"output_dir={tmp_path}", f"launch.accelerate_config={way}", f"launch.processes={ranks}"]
    dtrain("run", recipe, *changes, "--stages", "pretrain")
    for phase in ("phase-1", "phase-2"):
        assert distance(tmp_path / "pre" / "pretrain" / phase, alone / phase) < 1e-4, phase
    one, other = (
        json.loads((f / "phase-2" / "metrics.json").read_text()) for f in (alone, tmp_path / "pre" / "pretrain")
    )
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert other["tokens"] == one["tokens"]
    assert not (tmp_path / "pre" / "checkpoints").exists()


@pytest.fixture(scope="module")
def pairs_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with next-sentence prediction; beside it, in `alone`, the models of one process."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path_factory.mktemp("pairs")
    recipe = write_recipe(folder, "bert", separate=False, pairs=True)
    told = dtrain("pretrain", recipe, f"output_dir={folder / 'alone'}")
    assert ", next sentence 0." in told
    events = EventAccumulator(str(folder / "alone" / "pre" / "tensorboard" / "pretrain" / "phase-2")).Reload()
    scalars = {f"{split}/next_sentence_{name}" for split in ("train", "valid") for name in ("loss", "accuracy")}
    assert scalars | {"train/masked_loss", "valid/masked_loss"} <= set(events.Tags()["scalars"])
    return recipe


@pytest.mark.parametrize(
    ("way", "ranks"),
    [("ddp", 3), pytest.param("fsdp2", 2, marks=pytest.mark.slow), pytest.param("zero3", 2, marks=pytest.mark.slow)],
)
def test_nor_with_next_sentences(pairs_alone: Path, tmp_path: Path, way: str, ranks: int) -> None:
    changes = [f"output_dir={tmp_path}", f"launch.accelerate_config={way}", f"launch.processes={ranks}"]
    dtrain("run", pairs_alone, *changes, "--stages", "pretrain")
    one, other = (folder / "pre" / "pretrain" for folder in (pairs_alone.parent / "alone", tmp_path))
    for phase in ("phase-1", "phase-2"):
        assert {"cls.seq_relationship.weight", "bert.pooler.dense.weight"} <= weights(one / phase).keys()
        assert distance(other / phase, one / phase) < 1e-4, phase
    a, b = (json.loads((folder / "phase-2" / "metrics.json").read_text()) for folder in (one, other))
    for name in ("loss", "masked_loss", "next_sentence_loss"):
        assert b[name] == pytest.approx(a[name], rel=1e-5)
    assert a["loss"] == pytest.approx(a["masked_loss"] + a["next_sentence_loss"])


@pytest.mark.parametrize("pairs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_stopped_and_continued_ends_bit_for_bit_where_it_would_have(tmp_path: Path, pairs: bool) -> None:
    """Stopped in the second phase, with two ranks; then the stopped run has a model folder of its latest evaluation."""
    recipe = write_recipe(tmp_path, "bert" if pairs else "nezha", separate=False, pairs=pairs)
    longer = [
        "pretrain.phases.0.epochs=1",
        "pretrain.phases.1.epochs=12",
        "pretrain.phases.1.checkpoint_every=5",
        "pretrain.phases.1.evaluate_every=5",
        "pretrain.model.dropout=0.1",
    ]
    undisturbed, stopped = tmp_path / "a", tmp_path / "b"
    dtrain("run", recipe, f"output_dir={undisturbed}", *longer, "--stages", "pretrain")
    arguments = ["run", recipe, f"output_dir={stopped}", *longer, "--stages", "pretrain"]
    process = start(["-m", "dtrain", *arguments])
    root = stopped / "pre"
    deadline = time.monotonic() + 300
    checkpoints = root / "checkpoints" / "pretrain" / "phase-2"
    while not (list(checkpoints.glob("step-*")) and (root / "pretrain" / "latest").exists()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "pretrain phase 2: stopped on request (SIGTERM)" in err
    assert not (root / "pretrain" / "phase-2").exists()
    assert weights(root / "pretrain" / "latest").keys() == weights(root / "pretrain" / "phase-1").keys()
    told = dtrain(*arguments)
    assert "pretrain phase 1: complete, nothing to do" in told
    a, b = (weights(folder / "pre" / "pretrain" / "phase-2") for folder in (undisturbed, stopped))
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    assert not (root / "pretrain" / "latest").exists()
    assert "nothing to do" in dtrain(*arguments)


def test_from_text_to_a_teacher_bert_with_documents_kept_apart(tmp_path: Path) -> None:
    """`dtrain run` runs everything; transformers loads the folder and its tokenizer, and the teacher starts from it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

    recipe = write_recipe(tmp_path, "bert", separate=True)
    slow = "teachers.teacher.optimizer.lr=1e-9"  # so that the teacher's encoder hardly changes
    dtrain("run", recipe, slow, "--stages", "pretrain,prepare,finetune")
    root = tmp_path / "runs" / "pre"
    result = root / "pretrain" / "phase-2"
    model = AutoModelForMaskedLM.from_pretrained(result)
    assert isinstance(model, BertForMaskedLM)
    tokenizer = AutoTokenizer.from_pretrained(result)
    assert tokenizer.tokenize("球队比赛") == ["球", "队", "比", "赛"] and model.config.vocab_size == len(tokenizer)
    made, taught = weights(result), weights(root / "teachers" / "teacher")
    shared = [name for name in made if name.startswith("bert.")]
    assert len(shared) > 30 and all((made[name] - taught[name]).abs().max() < 1e-6 for name in shared)

    scalars: set[str] = set()
    for phase in ("phase-1", "phase-2"):
        events = EventAccumulator(str(root / "tensorboard" / "pretrain" / phase)).Reload()
        scalars |= set(events.Tags()["scalars"])
    expected = {"train/loss", "train/accuracy", "valid/loss", "valid/accuracy", "valid/perplexity"}
    assert expected | {"speed/tokens_per_second", "speed/utilisation", "train/trust_ratio_median"} <= scalars


def test_the_offline_recipe_from_real_text_to_students(data_folder: Path, tmp_path: Path) -> None:
    """The recipe `tnews_offline`, on the first lines of every file and with smaller models. No row of a dev or test
    file is in the corpus, although one of each was added to the titles.
    """
    import datasets
    from transformers import AutoTokenizer

    heads = {"tnews/dev.json": 150, "tnews/test.json": 150, "thucnews/dev.txt": 100, "thucnews/test.txt": 100}
    heads |= {"tnews/train.json": 600, "tnews/transfer.txt": 300, "thucnews/train45k.txt": 300, "text/reviews.txt": 300}
    held: dict[str, list[str]] = {}
    for name, count in heads.items():
        lines = (data_folder / name).read_text(encoding="utf-8").splitlines()[:count]
        if name in ("tnews/dev.json", "tnews/test.json"):
            held[name] = [json.loads(line)["sentence"] for line in lines]
        elif name in ("thucnews/dev.txt", "thucnews/test.txt"):
            held[name] = [line.split("\t")[0] for line in lines]
        elif name == "tnews/transfer.txt":
            lines += [titles[5] for titles in held.values()]
        elif name == "text/reviews.txt":
            lines += [titles[7] for titles in held.values()]
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    smaller = [
        "pretrain.model.hidden=16",
        "pretrain.model.layers=1",
        "pretrain.model.heads=2",
        "pretrain.precision=fp32",
    ]
    smaller += ["pretrain.phases.*.epochs=1", "pretrain.model.vocabulary_size=900", "data.vocabulary.min_count=1"]
    smaller += ["teachers.*.epochs=1", "teachers.*.precision=fp32", "teachers.scratch.model.hidden=16"]
    smaller += ["teachers.scratch.model.heads=2", "students.*.epochs=1", "students.*.precision=fp32"]
    smaller += ["students.*.grid={seed: [1]}"]
    smaller += ["launch.processes=1", "report.latency=false"]
    dtrain("run", "tnews_offline", *smaller, folder=tmp_path)
    root = tmp_path / "runs" / "tnews_offline"
    tokens = datasets.load_from_disk(root / "data" / "corpus" / "tokens")["tokens"]
    tokenizer = AutoTokenizer.from_pretrained(root / "data" / "corpus" / "tokenizer")
    texts = {tuple(row) for row in tokens}
    for name, titles in held.items():
        # As the recipe normalises them; rows with characters that normalisation changes are covered by the assertion in
        # the run itself.
        encoded = {tuple(tokenizer(title, add_special_tokens=False)["input_ids"]) for title in titles}
        assert encoded.isdisjoint(texts), name
    corpus = json.loads((root / "data" / "corpus" / "corpus.json").read_text(encoding="utf-8"))
    assert corpus["excluded_lines"] >= 4 * 4 + 4  # titles count four times
    results = json.loads((root / "report" / "results.json").read_text(encoding="utf-8"))
    assert "bilstm-distilled" in json.dumps(results) and "textcnn-scratch" in json.dumps(results)
