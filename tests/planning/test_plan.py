"""`dtrain plan`: memory by formulas, what fits, which config; and what `dtrain check` warns of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from dtrain.__main__ import main
from dtrain.models import build
from dtrain.planning import command, members, pairs, report, trial, ways
from dtrain.planning.pairs import pair_config
from dtrain.planning.trial import Activations, Shape
from dtrain.planning.ways import GIB
from dtrain.recipe import load_recipe
from dtrain.recipe.architectures.seq2seq import BartSpec, MarianSpec
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
        ("ddp", 8, "bf16", 16),  # gradients lie in DDP's buckets
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


def test_gradients_of_several_passes_wait_for_the_last() -> None:
    def held(way: str, passes: int) -> float:
        how: dict[str, Any] = {"ranks": 8, "optimizer": "adamw", "precision": "bf16", "passes": passes}
        return ways.memory(way, SHAPE, 0.0, **how).held

    assert {way: held(way, 4) - held(way, 1) for way in ("ddp", "fsdp2", "zero2")} == {
        "ddp": 4 * P,  # beside the buckets
        "fsdp2": 4 * P,  # not cut up yet
        "zero2": 0.0,
    }


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


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=[] if model == "bert" else pytest.mark.distributed) for model in LARGE]
)
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


def test_one_config_and_small_gpus(tmp_path: Path, no_trials: None, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, LARGE["big"])
    assert main(["plan", str(path), "--gpus", "8", "--memory", "24GB", "--config", "zero2"]) == 0
    told = capsys.readouterr().out
    assert "  zero2 " in told and "  fsdp2 " not in told
    assert main(["plan", str(path), "--gpus", "8", "--memory", "4GB", "--config", "ddp_bf16"]) == 0
    assert "none fits" in capsys.readouterr().out
    assert main(["plan", str(path), "--gpus", "1", "--memory", "80GB", "--config", "zero2_offload"]) == 0
    told = capsys.readouterr().out
    assert "on one GPU nothing is cut up or offloaded: zero2_offload trains as ddp does" in told
    assert "  ddp " in told and "  zero2_offload " not in told and "accelerate_config: ddp" in told


def test_a_teacher_from_a_folder_is_named(tmp_path: Path, no_trials: None) -> None:
    path = recipe(tmp_path, SMALL)
    path.write_text(path.read_text().replace("teachers: [", "teachers: [{name: given, from: there}, "))
    told = planned(path)
    assert "teacher given: from there, not trained; its store is not planned" in told
    assert any(line.startswith("teacher big: bert") for line in told)


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


def planned(path: Path) -> list[str]:
    return report.lines(load_recipe(str(path), []), report.Gpus(1, 4, 24 * GIB), {})


def test_members_that_differ_in_their_seed_have_one_table(tmp_path: Path, no_trials: None) -> None:
    path = recipe(tmp_path, SMALL)
    path.write_text(path.read_text().replace("batch_size: 512}", "batch_size: 512, grid: {seed: [1, 2]}}"))
    told = planned(path)
    assert [line.partition(":")[0] for line in told if " M parameters" in line] == ["teacher big-seed1, big-seed2"]
    assert sum(line.startswith("store of") for line in told) == 2


def test_members_of_as_many_passes_over_other_micro_batches_have_tables_of_their_own(
    tmp_path: Path, no_trials: None
) -> None:
    path = recipe(tmp_path, SMALL)
    own = "{name: accumulating, model: " + SMALL + ", batch_size: 512, accumulation: 2}"
    path.write_text(
        path.read_text().replace("batch_size: 512}", f"batch_size: 512, adversarial: {{type: fgm}}}}, {own}")
    )
    told = [line for line in planned(path) if " M parameters" in line]
    assert [(line.partition(":")[0], line.partition("a step, ")[2].split()[0]) for line in told] == [
        ("teacher big", "128"),
        ("teacher accumulating", "64"),
    ]


@pytest.fixture
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations as if they had been tracked, where they are not what a test is about."""
    known = Activations(((0.2 * GIB, GIB),), "tracked")
    monkeypatch.setattr(members.Member, "activations", lambda self, checkpointing: known)


SMALL = "{type: bert, layers: 2, hidden: 64, heads: 2, vocabulary_size: 500}"


def test_pretraining_is_planned_and_what_starts_from_it_has_its_shape(tmp_path: Path, no_trials: None) -> None:
    (tmp_path / "text.txt").write_text("no matter\n")
    phases = "[{max_length: 64, batch_size: 64}, {max_length: 128, batch_size: 32, accumulation: 2}]"
    corpus = f"{{sources: [{{path: {tmp_path}/text.txt}}]}}"
    section = f"pretrain: {{model: {SMALL}, corpus: {corpus}, phases: {phases}}}\n"
    told = planned(recipe(tmp_path, "{type: bert, pretrained: pretrain}", section))
    assert [line.partition(":")[0] for line in told if " M parameters" in line] == [
        "pretrain phase-1",
        "pretrain phase-2",
        "teacher big",
    ]
    assert any("32 rows a step, 4 of 128 tokens in a micro-batch" in line for line in told)
    assert not any("assumed" in line.partition("teacher big")[2] for line in told)


def test_the_head_over_the_vocabulary_counts() -> None:
    config = {"model_type": "bert", "vocab_size": 30_000, "hidden_size": 64}
    config |= {"num_attention_heads": 2, "intermediate_size": 256}
    plain, masked = (max(trial._peaks(trial._key(config, 1, n), 64, 32, "fp32", False)) for n in (0, 5))
    # Of each masked token: scores, their logarithms and two gradients of them, in float32.
    assert masked - plain > 2 * 4 * 64 * 5 * 30_000


def test_students_with_phases_with_online_teachers_and_of_numbers(tmp_path: Path, no_trials: None) -> None:
    more = """data: {train: nowhere.jsonl, task: regression, columns: {text: a, label: b}, max_length: 64}
students:
  - &student
    name: phased
    model: {type: bert, layers: 1, hidden: 32, heads: 2, tokenizer: big}
    phases: [{name: first, batch_size: 256, losses: [{type: hidden_mse}]}, {name: second, batch_size: 8}]
  - {name: asking, model: {type: bert, layers: 1, hidden: 16, heads: 2, tokenizer: big}, answers: online}
"""
    path = recipe(tmp_path, SMALL)
    path.write_text(
        "\n".join(line for line in path.read_text().splitlines() if not line.startswith("data")) + f"\n{more}"
    )
    read = load_recipe(str(path), [])
    phased = next(iter(members.members_of(read, "students")))
    assert (phased.rows, phased.micro_batch(1)) == (256, 256)
    told = planned(path)
    assert sum("GB (f) of big, asked in training" in line for line in told) == 2
    assert any("store of big: 0.002 GB a million rows" in line and "labels" not in line for line in told)  # one number
    path.write_text(
        path.read_text().replace("{name: second, batch_size: 8}", "{name: second, losses: [{type: squared_error}]}")
    )
    assert not any("store of" in line for line in planned(path))  # nobody reads one


def test_check_warns_of_a_teacher_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = load_recipe(str(recipe(tmp_path, LARGE["bert"])), [])
    assert check._too_large(read) == []  # no GPU here
    monkeypatch.setattr(check, "visible_gpus", lambda: 2)
    monkeypatch.setattr(command, "torch_sees", lambda: (2, 16.0 * GIB))
    (told,) = check._too_large(read)
    assert told.startswith("teachers.big: 256 rows of 128 tokens a micro-batch take about")
    monkeypatch.setattr(command, "torch_sees", lambda: (2, 180.0 * GIB))
    assert check._too_large(read) == []
    # As many ranks as are started, by the config of the stage, may be others than there are GPUs.
    monkeypatch.setattr(command, "torch_sees", lambda: (8, 16.0 * GIB))
    alone = "launch.stages.finetune={processes: 1, accelerate_config: fsdp2}"
    (told,) = check._too_large(load_recipe(str(recipe(tmp_path, LARGE["bert"])), [alone]))
    assert told.startswith("teachers.big: 512 rows") and " by fsdp2;" in told


def test_encoder_decoders_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` warns by the same figures where there are GPUs. Parameters are those of the model that is built."""
    pytest.importorskip("sacrebleu", reason="scores of seq2seq need sacrebleu")
    shape = "hidden: 64, layers: 1, heads: 4, vocabulary_size: 500"
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: pairs\ndata: {{task: seq2seq, train: nowhere.tsv, max_length: 32}}\noutput_dir: {tmp_path}/runs\n"
        f"teachers: [{{name: big, model: {{type: marian, {shape}, vocabularies: two}}, batch_size: 512}}]\n"
        f"knowledge: {{outputs: [token_logits, sequences], top_k: 4, beam: 3}}\n"
        f"students: [{{name: s, model: {{type: bart, {shape}, decoder_layers: 2}}, rows: [sequences]}}]\n",
        encoding="utf-8",
    )
    assert main(["plan", str(path)]) == 0
    told = capsys.readouterr().out
    wanted = load_recipe(str(path))
    for section in ("teachers", "students"):
        (member,) = members.members_of(wanted, section)
        own = build(member.spec.model, vocabulary=500, labels=["target"], pad_id=0, max_length=32)
        assert member.shape.parameters == sum(parameter.numel() for parameter in own.parameters())
        assert member.shape.tensors == len(list(own.parameters())) and member.activations(False).how == "tracked"
        assert f" {member.spec.name}: {member.spec.model.type}, " in told
    # A million rows: (4 + 4 + 1) numbers of 2 bytes for each of 32 tokens, and 3 candidates of 32 tokens and a score.
    assert f"store of big: {1e6 * (32 * 9 * 2 + 3 * 33 * 4) / GIB:.3f} GB a million rows" in told
    (problem,) = report.unfit(wanted, "teachers", report.Gpus(1, 1, 1.7 * GIB), "ddp")
    assert problem.startswith("teachers.big: 512 rows of 32 tokens a micro-batch take about ")


def test_a_deep_pair_is_extrapolated_from_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer adds the same bytes, so that the figures are those of a trial of the whole model, to the byte."""
    shape = {"hidden": 64, "layers": 6, "decoder_layers": 5, "heads": 4, "vocabulary_size": 500}
    config, _ = pair_config(BartSpec.model_validate({"type": "bart", **shape}), 500, 64)
    sizes: list[tuple[int, int]] = []
    plain = pairs._lines

    def lines(config: Any, layers: tuple[int, int], **how: Any) -> Any:
        sizes.append(layers)
        return plain(config, layers, **how)

    monkeypatch.setattr(pairs, "_lines", lines)
    whole = pairs.pair_activations(config, 16, "fp32", False)
    monkeypatch.setattr(pairs, "LAYERS", (1, 2))  # then a model of 11 layers is a deep one
    assert pairs.pair_activations(config, 16, "fp32", False) == whole
    assert sizes == [(6, 5), (1, 1), (2, 1), (1, 2)]


def test_a_pair_that_is_not_here_has_an_assumed_shape() -> None:
    spec = MarianSpec(type="marian", pretrained="nobody/opus-mt-xx-yy")
    config, assumed = pair_config(spec, 8000, 64)
    assert (config.d_model, config.encoder_layers, config.vocab_size) == (768, 12, 8000)
    assert assumed == ["nobody/opus-mt-xx-yy is not here: the shape of `size: base`"]
