"""`dtrain plan`: memory by formulas, what fits, which config; and what `dtrain check` warns of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from dtrain.__main__ import main
from dtrain.planning import command, members, report, ways
from dtrain.planning.trial import Activations, Shape
from dtrain.planning.ways import GIB
from dtrain.recipe import load_recipe
from dtrain.stages import check

LARGE = {
    "bert": "{type: bert, size: large, vocabulary_size: 21128}",
    "nezha": "{type: nezha, size: large, vocabulary_size: 21128}",
    "big": "{type: bert, hidden: 1600, layers: 48, heads: 25, vocabulary_size: 21128}",
}
SHAPE = Shape(parameters=1_000_000_000, tensors=400, layers=24, block=40_000_000, largest=30_000_000)
P = float(SHAPE.parameters)


def recipe(folder: Path, model: str, *more: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        f"name: large\ndata: {{train: nowhere.jsonl, max_length: 128}}\noutput_dir: {folder}/runs\n"
        f"teachers: [{{name: big, model: {model}, batch_size: 512}}]\n" + "".join(more),
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(
    ("way", "ranks", "precision", "bytes_a_number"),
    [
        ("ddp", 1, "bf16", 16),
        ("ddp", 8, "bf16", 20),  # with DDP's own buckets
        ("fsdp2", 8, "fp32", 16 / 8),
        ("zero1", 8, "bf16", 4 + 12 / 8),  # Rajbhandari et al. 2020, figure 1, as in the manual's table
        ("zero2", 8, "bf16", 2 + 14 / 8),
        ("zero3", 8, "bf16", 16 / 8),
        ("zero2_offload", 8, "bf16", 2),
    ],
)
def test_what_is_held_is_the_papers(way: str, ranks: int, precision: str, bytes_a_number: float) -> None:
    found = ways.memory(way, SHAPE, 0.0, ranks=ranks, optimizer="adamw", precision=precision)
    passing = found.buffers if way != "ddp" else 0.0
    assert found.held - passing == pytest.approx(bytes_a_number * P)


def test_lamb_and_sgd() -> None:
    adamw, lamb, sgd = (
        ways.memory("ddp", SHAPE, 0.0, ranks=1, optimizer=name, precision="fp32").held
        for name in ("adamw", "lamb", "sgd")
    )
    assert (lamb - adamw, adamw - sgd) == (4 * P, 4 * P)


def test_what_is_sent() -> None:
    def sent(way: str, ranks: int = 8, passes: int = 1, optimizer: str = "adamw") -> float:
        return ways.sent(way, SHAPE, ranks=ranks, optimizer=optimizer, precision="bf16", passes=passes)

    assert sent("ddp", ranks=1) == 0
    assert sent("ddp") == pytest.approx(2 * 7 / 8 * 4 * P)
    assert sent("ddp", passes=4) == sent("ddp")
    assert sent("fsdp2") == pytest.approx(1.5 * sent("ddp"))
    assert sent("zero3") == pytest.approx(1.5 * sent("zero1"))
    assert sent("zero2", passes=3) == pytest.approx(2 * sent("zero2"))
    assert sent("ddp", optimizer="lamb") - sent("ddp") == 32 * SHAPE.tensors


def test_the_largest_micro_batch_fits_and_one_row_more_does_not() -> None:
    each = Activations(((0.2 * GIB, GIB), (0.1 * GIB, 5 * GIB)), "formula")
    how: dict[str, Any] = {"ranks": 8, "optimizer": "adamw", "precision": "bf16"}
    free = ways.room(40 * GIB)
    most = ways.most_rows("zero2", SHAPE, each, free, **how)
    assert most > 0
    assert ways.memory("zero2", SHAPE, each.of(most), **how).peak <= free
    assert ways.memory("zero2", SHAPE, each.of(most + 1), **how).peak > free
    assert ways.most_rows("ddp", SHAPE, each, ways.room(8 * GIB), **how) == 0


@pytest.mark.parametrize("model", LARGE)
def test_large_teachers_are_planned_in_a_minute(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 1, 8 and 16 GPUs of 80 GB, without the data."""
    path, takes = recipe(tmp_path, LARGE[model]), {}
    for gpus, nodes in ((1, 1), (8, 1), (8, 2)):
        begin = time.process_time()
        words = ["plan", str(path), "--gpus", str(gpus), "--nodes", str(nodes), "--memory", "80GB"]
        assert main(words) == 0
        assert time.process_time() - begin < 60
        told = capsys.readouterr().out
        takes[gpus * nodes] = next(line for line in told.splitlines() if "takes:" in line)
        assert told.count(" + checkpointing") == (7 if gpus > 1 else 1)
        assert "store of big: 0.028 GB a million rows" in told
    assert "accelerate_config: ddp" in takes[16]
    # 512 rows at once on one GPU: recomputing, or fewer rows at a time.
    if model != "bert":
        assert "activation_checkpointing: true" in takes[1] or "accumulation:" in takes[1]


def test_one_config_and_small_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, LARGE["big"])
    assert main(["plan", str(path), "--gpus", "8", "--memory", "24GB", "--config", "zero2"]) == 0
    told = capsys.readouterr().out
    assert "  zero2 " in told and "  fsdp2 " not in told
    assert main(["plan", str(path), "--gpus", "8", "--memory", "4GB"]) == 0
    assert "none fits" in capsys.readouterr().out or "offload" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--memory", "much"], "--memory: 'much' is no size"),
        (["--config", "zero9"], "--config: 'zero9' is not planned"),
        (["--nodes", "0"], "--gpus, --nodes"),
    ],
)
def test_options_that_cannot_be(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe(tmp_path, "{type: textcnn}")), *words]) == 2
    assert told in capsys.readouterr().err


def test_students_beside_each_other_and_members_without_a_transformer(tmp_path: Path) -> None:
    more = "students:\n  - {name: lstm, model: {type: bilstm}}\n  - {name: cnn, model: {type: textcnn}}\n"
    read = load_recipe(str(recipe(tmp_path, "{type: textcnn}", more)), [])
    found = {member.spec.name: member for member in members.members_of(read, "students")}
    assert found["cnn"].activations(False).how == "tracked"
    assert found["lstm"].activations(False).how == "formula"
    told = report.lines(read, report.Gpus(1, 1, 80 * GIB), {"": 2_000_000})
    assert any("beside each other on a GPU" in line for line in told)
    assert any("store of big: 0.056 GB: logits" in line for line in told)


def test_check_warns_of_a_teacher_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = load_recipe(str(recipe(tmp_path, LARGE["bert"])), [])
    assert check._too_large(read) == []  # no GPU here
    monkeypatch.setattr(check, "visible_gpus", lambda: 2)
    monkeypatch.setattr(command, "torch_sees", lambda: (2, 16.0 * GIB))
    (told,) = check._too_large(read)
    assert told.startswith("teachers.big: 256 rows of 128 tokens a micro-batch take about")
    monkeypatch.setattr(command, "torch_sees", lambda: (2, 180.0 * GIB))
    assert check._too_large(read) == []
