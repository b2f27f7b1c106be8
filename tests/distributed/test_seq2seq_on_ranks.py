"""Task `seq2seq` through every stage: two ranks train, score and generate the same as one; a model folder can be used
alone.
"""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sacrebleu", reason="scores of seq2seq need sacrebleu")

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from dtrain import Predictor
from dtrain.data import EncodedSplit, PreparedData
from dtrain.knowledge.reader import StoreReader
from dtrain.models.decoding import NO_TOKEN
from dtrain.runfolder import RunFolder, read_json
from tests.processes import dtrain, ended, start, start_ranks, wait_for

pytestmark = pytest.mark.distributed
WORDS = {"one": "一", "two": "二", "three": "三", "dog": "狗", "cat": "猫", "big": "大", "red": "红"}
TRAINED = "epochs: 3, batch_size: 16, optimizer: {lr: 0.02}"
SMALL = "{type: marian, hidden: 8, heads: 2, layers: 1, dropout: 0, tokenizer: big}"
RECIPE = f"""name: toy
data: {{task: seq2seq, train: train.tsv, valid: valid.tsv, test: test.jsonl, transfer: more.txt, max_length: 8}}
teachers:
  - {{name: big, model: {{type: marian, hidden: 16, heads: 2, layers: 1, vocabulary_size: 120, vocabularies: two, dropout: 0}},
     label_smoothing: 0.1, {TRAINED}}}
knowledge: {{beam: 3, top_k: 4, shard_rows: 20, dtype: float32}}
students:
  - {{name: scratch, teachers: [], model: {{type: bart, hidden: 8, heads: 2, layers: 1, vocabulary_size: 100}}, {TRAINED}}}
  - {{name: words, model: {SMALL}, parallel: data, accumulation: 2, {TRAINED}}}
  - {{name: sequences, model: {{type: bart, hidden: 8, heads: 2, layers: 1, vocabulary_size: 100}}, rows: [sequences], {TRAINED}}}
  - {{name: nearest, model: {SMALL}, rows: [interpolated], {TRAINED}}}
  - {{name: both, model: {SMALL}, rows: [train, sequences], {TRAINED}}}
  - {{name: beside, model: {SMALL}, rows: [sequences], answers: online, losses: [{{type: word_level}}], {TRAINED}}}
launch: {{timeout: 120}}
report: {{latency: false}}
"""
MODELS = [
    "teachers/big",
    *(f"students/{name}" for name in ("scratch", "words", "sequences", "nearest", "both", "beside")),
]
RUN = ["-m", "dtrain", "run", "toy.yaml"]


def write(folder: Path, recipe: str = RECIPE) -> None:
    """Pairs whose targets are the source's words, one by one, in another script."""
    draw = random.Random(0)
    sources = [" ".join(draw.choices(list(WORDS), k=draw.randint(1, 5))) for _ in range(160)]
    pairs = [(source, "".join(WORDS[word] for word in source.split())) for source in sources]
    lines = [f"{source}\t{target}\n" for source, target in pairs]
    (folder / "train.tsv").write_text("source\ttarget\n" + "".join(lines[:96]))
    (folder / "valid.tsv").write_text("source\ttarget\n" + "".join(lines[96:112]))
    rows = [f'{{"source": "{source}", "target": "{target}"}}\n' for source, target in pairs[112:130]]
    (folder / "test.jsonl").write_text("".join(rows))
    (folder / "more.txt").write_text("".join(f"{source}\n" for source, _ in pairs[130:]))
    (folder / "toy.yaml").write_text(recipe)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The runs of one rank and of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for folder in (one, two):
        write(folder)
    codes, told = ended([start([*RUN, "launch.processes=1"], one), *start_ranks(RUN, two)], 600)
    assert set(codes) == {0}, told
    return one / "runs/toy", two / "runs/toy"


def distance(one: Path, other: Path) -> float:
    """The largest relative distance of two models' weights, except the keys' biases, whose gradient consists of
    rounding errors.
    """
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / (a[n].norm() + 1e-6)) for n in a if "k_proj.bias" not in n)


def test_two_ranks_make_what_one_makes(runs: tuple[Path, Path]) -> None:
    one, two = runs
    for model in MODELS:
        assert distance(one / model, two / model) < 1e-4, model
        first, second = (read_json(run / model / "evaluation.json")["parts"]["test"] for run in runs)
        assert first["scores"]["loss"] == pytest.approx(second["scores"]["loss"], rel=1e-3)
        assert first["scores"]["rows"] == 18 and {"bleu", "bleu_beam", "chrf", "rouge_l"} <= set(first["scores"])
        assert "tok:zh" in first["signature"] and len(first["written"]) == 8
    page = (one / "report/report.md").read_text()
    assert "BLEU, beam, test (%)" in page and "by beam" in page


def test_stores_and_scores_are_the_same_bytes_on_any_number_of_ranks(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Two and three ranks compute the outputs and the scores of the models of one rank again."""
    place = runs[0].parent.parent

    def outputs(folder: Path) -> dict[str, bytes]:
        files = [*folder.rglob("knowledge/*/shard-*"), *folder.rglob("evaluation.json")]
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}

    expected = outputs(place)
    assert len([name for name in expected if "shard" in name]) == 7 and len(expected) == 7 + len(MODELS)
    for ranks in (2, 3):
        again = tmp_path / str(ranks)
        shutil.copytree(place, again)
        shutil.rmtree(again / "runs/toy/knowledge")
        for file in again.rglob("evaluation.json"):
            file.unlink()
        for stage in ("precompute", "evaluate"):
            codes, told = ended(start_ranks(["-m", "dtrain", stage, "toy.yaml"], again, ranks), 300)
            assert set(codes) == {0}, told
        assert outputs(again) == expected


# The number of ranks, and the place where the first of them is killed; then the others are killed, too.
KILLS = [(1, "search", 3), (2, "rename", 1), (3, "shard", 1), (2, "search", 1), (3, "publish", 1), (1, "manifest", 1)]


def test_a_store_of_beams_killed_six_times_has_the_bytes_of_an_undisturbed_one(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each time another number of ranks continues, from the complete shards that exist."""
    place, again = runs[0].parent.parent, tmp_path / "again"
    shutil.copytree(place, again)
    store = again / "runs/toy/knowledge/big"
    shutil.rmtree(store)
    shards: list[int] = []
    for ranks, where, times in KILLS:
        started = start_ranks(
            [Path(__file__).with_name("killed_precompute.py"), where, times, "toy.yaml"], again, ranks
        )
        wait_for(lambda started=started: any(process.poll() is not None for process in started), 300)
        assert -signal.SIGKILL in [process.poll() for process in started], ended(started, 1)
        for process in started:
            process.kill()
        ended(started)
        assert not (store / "done.json").exists()
        shards.append(len(list(store.glob("shard-*"))))
    assert shards[0] < shards[2] < 7 and shards[1] == shards[0] and shards[3] == shards[2] and shards[4:] == [7, 7]
    codes, told = ended(start_ranks(["-m", "dtrain", "precompute", "toy.yaml"], again), 300)
    assert set(codes) == {0}, told
    files = {path.name for path in store.iterdir()}
    assert files == {path.name for path in (runs[0] / "knowledge/big").iterdir()}
    for name in files - {"done.json"}:
        assert (store / name).read_bytes() == (runs[0] / "knowledge/big" / name).read_bytes(), name


def test_a_store_holds_the_candidates_and_the_likeliest_tokens(runs: tuple[Path, Path]) -> None:
    store = StoreReader.open(runs[0] / "knowledge/big")
    data = PreparedData.open(RunFolder(runs[0]))
    rows = EncodedSplit.concat([data.part(part, "big") for part in ("train", "transfer")])
    tokens, scores = store.candidates(rows.ids)
    assert tokens.shape == (126, 3, 8) and scores.shape == (126, 3) and (np.diff(scores, axis=1) <= 1e-6).all()
    stored = store.read("token_logits", rows.ids)
    assert stored.shape == (126, rows.target_lengths.max(), 2 * 4 + 1)
    model = AutoModelForSeq2SeqLM.from_pretrained(runs[0] / "teachers/big").eval()
    batch = rows.collate(np.array([5]))
    batch.pop("target_lengths")
    with torch.inference_mode():
        logits = model(**batch).logits[0]
        (own, *_) = model.generate(
            batch["input_ids"], attention_mask=batch["attention_mask"], num_beams=3, max_new_tokens=8, do_sample=False
        )
    values, best = logits.topk(4)
    assert torch.allclose(stored[5, : len(logits), :4], values, atol=1e-4)
    assert torch.equal(stored[5, : len(logits), 5:].long(), best)
    written = tokens[5, 0][tokens[5, 0] != NO_TOKEN]
    assert own[1 : 1 + len(written)].tolist() == written.tolist()


def test_a_folder_writes_by_itself(runs: tuple[Path, Path], tmp_path: Path) -> None:
    place = runs[0] / "students/sequences"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    texts = ["two big dog", "cat", "red red three one one"]
    answers = [answer["target"] for answer in Predictor(place)(texts)]
    for text, answer in zip(texts, answers, strict=True):
        encoded = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        (tokens,) = model.generate(**encoded, max_new_tokens=8, num_beams=1, do_sample=False)
        assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == answer
    (tmp_path / "new.txt").write_text("".join(f"{text}\n" for text in texts))
    found = dtrain("predict", place, "--input", tmp_path / "new.txt", "--form", "tsv", folder=tmp_path)
    assert [line.split("\t")[1] for line in found.splitlines() if line[:1].isdigit()] == answers


def test_new_texts_are_written_by_a_beam(runs: tuple[Path, Path], tmp_path: Path) -> None:
    place = runs[0] / "students/scratch"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    texts = ["two big dog", "cat", "red red three one one", "dog dog big big cat"]
    answers = {}
    for penalty in (1.0, -4.0):
        answers[penalty] = [a["target"] for a in Predictor(place, beam=4, length_penalty=penalty)(texts)]
        for text, answer in zip(texts, answers[penalty], strict=True):
            encoded = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            (tokens,) = model.generate(**encoded, max_new_tokens=8, num_beams=4, length_penalty=penalty)
            assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == answer
    (tmp_path / "new.txt").write_text("".join(f"{text}\n" for text in texts))
    shape = ("--input", tmp_path / "new.txt", "--form", "tsv", "--beam", "4")
    of_folder = dtrain("predict", place, *shape, "--length-penalty", "-4", folder=tmp_path)
    of_recipe = dtrain("predict", "toy.yaml", "--model", "scratch", *shape, folder=runs[0].parent.parent)
    for found, expected in ((of_folder, answers[-4.0]), (of_recipe, answers[1.0])):
        assert [line.split("\t")[1] for line in found.splitlines() if line[:1].isdigit()] == expected
    for beam, told in (("0", "--beam: 0 is not a positive number"), ("101", "--beam: 101 is more than the ")):
        assert told in dtrain("predict", place, "--input", "new.txt", "--beam", beam, code=2, folder=tmp_path)


def test_an_export_is_checked_by_its_texts_and_stands_in_the_report(runs: tuple[Path, Path]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    place, run = runs[1].parent.parent, runs[1]
    told = dtrain("export", "toy.yaml", "--model", "nearest", "--quantize", "int8", "--check", folder=place)
    found = read_json(run / "export/nearest-int8/metrics.json")
    check = found["check"]
    assert (check["rows"], check["metric"], check["largest_difference"]) == (16, "bleu", 0.0)
    assert set(check["scores"]) == {"bleu", "chrf"}
    before = read_json(run / "students/nearest/evaluation.json")["parts"]["valid"]["scores"]
    for name, of in check["scores"].items():
        assert of["before"] == before[name] and of["after"] == pytest.approx(before[name], abs=0.15)
    card = (run / "export/nearest-int8/README.md").read_text(encoding="utf-8")
    line = f"on 16 validation rows {check['flips']} answers differ; bleu {before['bleu']:.4f} before"
    assert line in told and line in card and "answer: a text of 8 tokens at most, written greedily" in card
    assert "export p50" in card
    dtrain("report", "toy.yaml", "report.latency=true", folder=place)
    page = (run / "report/report.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| nearest-int8 |")]
    assert f"bleu {before['bleu']:.4f} → " in row and f"| {check['flips']} of 16 |" in row
    (entry,) = read_json(run / "report/results.json")["exported"]
    assert entry["rows_per_second_cpu_1"] > 0 and "rows_per_second_cpu_1_beam" not in entry
