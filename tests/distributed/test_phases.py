"""Students with phases on two ranks, killed in the second phase and continued there, under every way of sharding."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dtrain.runfolder import read_json
from tests.distributed.forty_rows import write
from tests.processes import dtrain, ended, start_ranks

pytestmark = pytest.mark.distributed
BERT = {"type": "bert", "layers": 2, "heads": 2, "dropout": 0.0}
STATES = {"type": "hidden_mse", "teachers": ["t"]}
PHASES = [
    {
        "name": "states",
        "rows": ["corpus"],
        "max_length": 16,
        "losses": [{"type": "mlm"}, STATES],
        "epochs": 1,
        "up_to_layer": 1,
    },
    {"name": "answers", "losses": [{"type": "cross_entropy"}, STATES], "epochs": 2, "freeze": ["bert.embeddings"]},
]
STUDENT = {"model": {**BERT, "hidden": 8, "tokenizer": "t"}, "phases": PHASES, "batch_size": 8, "checkpoint_every": 1}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"train": "train.jsonl", "split": {"valid": 0.2}},
    "corpus": {"sources": [{"path": "text.txt", "documents": "line"}], "held_out": 0.2},
    "teachers": [{"name": "t", "model": {**BERT, "hidden": 12, "vocabulary_size": 100}, "epochs": 1, "batch_size": 8}],
    "students": [{"name": "whole", **STUDENT, "parallel": "data"}, {"name": "alone", **STUDENT}],
    "launch": {"processes": 2, "timeout": 60},
    "report": {"splits": ["valid"], "latency": False},
}
RUN = ["run", "recipe.yaml", "--stages", "prepare,finetune,precompute,distill"]
KILLED = """\
import os, signal
import dtrain.training.loop as loop
from dtrain.__main__ import entry

step = loop.train_step

def killed(run):
    if run.job.title == "student NAME, phase 2 (answers)" and run.position.step == 5:
        run.checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    step(run)

loop.train_step = killed
entry()
"""
"""In the middle of the second epoch, which has 4 steps."""


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"runs/tiny/students/{name}/model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("phases") / "undisturbed", RECIPE)
    lines = [" ".join(random.Random(number).choices(["abc", "bcd"], k=12)) for number in range(30)]
    (folder / "text.txt").write_text("\n".join(lines))
    codes, told = ended(start_ranks(["-m", "dtrain", *RUN], folder))
    assert codes == [0, 0], told
    return folder


def killed(undisturbed: Path, name: str) -> Path:
    """A copy of the run that was killed in the second phase of a student."""
    folder = undisturbed.parent / f"killed-{name}"
    shutil.copytree(undisturbed, folder)
    for part in ("students", "phases", "tensorboard"):
        shutil.rmtree(folder / "runs/tiny" / part)
    (folder / "killed.py").write_text(KILLED.replace("NAME", name), encoding="utf-8")
    codes, told = ended(start_ranks(["killed.py", *RUN, "launch.timeout=20"], folder))  # so long the other rank waits
    assert -signal.SIGKILL in codes, told
    assert (folder / f"runs/tiny/phases/{name}/1-states/done.json").exists()
    assert (folder / f"runs/tiny/checkpoints/students/{name}/2-answers/step-00000005").exists()
    assert not (folder / f"runs/tiny/students/{name}").exists()
    return folder


def test_killed_in_the_second_phase_and_continued(undisturbed: Path) -> None:
    together = killed(undisturbed, "whole")
    copies = {way: together.with_name(way) for way in ("fsdp2", "zero2")}
    for copy in copies.values():
        shutil.copytree(together, copy)
    codes, told = ended(start_ranks(["-m", "dtrain", *RUN], together))
    assert codes == [0, 0], told
    for name in ("whole", "alone"):
        expected = weights(undisturbed, name)
        assert all(torch.equal(found, expected[key]) for key, found in weights(together, name).items()), name
        (one, other) = (folder / f"runs/tiny/students/{name}/history.json" for folder in (undisturbed, together))
        assert read_json(one) == read_json(other)

    expected = weights(undisturbed, "whole")
    for way, copy in copies.items():
        dtrain(*RUN, f"launch.stages.distill.accelerate_config={way}", folder=copy)
        for key, found in weights(copy, "whole").items():
            assert torch.allclose(found, expected[key], atol=1e-5), (way, key)


def test_one_rank_s_student_killed_in_the_second_phase(undisturbed: Path) -> None:
    folder = killed(undisturbed, "alone")
    codes, told = ended(start_ranks(["-m", "dtrain", *RUN], folder))
    assert codes == [0, 0], told
    expected = weights(undisturbed, "alone")
    assert all(torch.equal(found, expected[key]) for key, found in weights(folder, "alone").items())


def test_on_two_ranks_it_is_what_it_is_on_one(undisturbed: Path) -> None:
    """Students that all ranks train equal those that one rank trains, up to rounding; parameters that a phase does not
    train are the same bit for bit.
    """
    found, other = (
        [
            load_file(undisturbed / f"runs/tiny/{place}/model.safetensors")
            for place in (f"phases/{name}/1-states", f"students/{name}")
        ]
        for name in ("whole", "alone")
    )
    for one, two in zip(found, other, strict=True):
        assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    states, answers = found
    assert torch.equal(states["classifier.weight"], other[0]["classifier.weight"])
    assert torch.equal(
        states["bert.encoder.layer.1.output.dense.weight"], other[0]["bert.encoder.layer.1.output.dense.weight"]
    )
    assert torch.equal(
        states["bert.embeddings.word_embeddings.weight"], answers["bert.embeddings.word_embeddings.weight"]
    )
    assert not torch.equal(
        states["bert.encoder.layer.1.output.dense.weight"], answers["bert.encoder.layer.1.output.dense.weight"]
    )
