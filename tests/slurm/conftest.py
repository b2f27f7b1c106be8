"""One real 3-node cluster for all tests of this folder, a tiny recipe, and its undisturbed run."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import cluster as slurm

ROOT = Path(__file__).parent.parent.parent
RECIPE = """\
name: tiny
seed: 5
output_dir: {folder}/runs
data:
  train: {folder}/train.jsonl
  transfer: {folder}/more.txt
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
teachers:
  - name: cnn
    model: {{type: textcnn, embedding: 8, filters: 4, dropout: 0.1}}
    epochs: 40
    batch_size: 40
    evaluate_every: 40
    checkpoint_every: 16
knowledge: {{shard_rows: 16, batch_tokens: 128}}
students:
  - name: lstm
    model: {{type: bilstm, embedding: 4, hidden: 4}}
    epochs: 50
    batch_size: 40
    evaluate_every: 100
    checkpoint_every: 20
    grid: {{seed: [1, 2]}}
launch:
  processes: 1  # a node; most of the time here goes into starting processes
  timeout: 90
  stages: {{distill: {{processes: 2}}}}
report: {{latency: false, splits: [valid]}}
"""
TOPICS = {"sport": "球队比赛进球冠军", "food": "好吃餐厅美味火锅"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    """Three nodes with four CPUs and two GPUs each; the GPUs are copies of /dev/null."""
    reason = slurm.missing()
    if reason:
        pytest.skip(f"no SLURM cluster here: {reason}")
    with slurm.Cluster(nodes=3, cpus=4, gpus=2) as booted:
        booted.environment["PYTHONPATH"] = str(ROOT)  # jobs run this checkout
        yield booted


def write_inputs(folder: Path) -> Path:
    """Write the rows and the recipe; returns the path of the recipe."""
    draw = random.Random(0)

    def text(topic: str) -> str:
        return "".join(draw.choice(TOPICS[topic] + "的了是在我") for _ in range(draw.randint(3, 9)))

    topics = draw.choices(list(TOPICS), k=200)
    rows = [json.dumps({"text": text(topic), "label": topic}, ensure_ascii=False) for topic in topics]
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "more.txt").write_text("".join(text("food") + "\n" for _ in range(100)), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return recipe


class Pipeline:
    """A run that was submitted, and its jobs by name."""

    def __init__(
        self, cluster: slurm.Cluster, recipe: Path | str, folder: Path, *options: str, name: str = "tiny"
    ) -> None:
        self.cluster = cluster
        self.run = folder / "runs" / name
        words = [sys.executable, "-m", "dtrain", "submit", recipe, f"output_dir={folder}/runs", *options]
        self.told = cluster.run(*words, cwd=folder)
        line = next(line for line in self.told.splitlines() if line.startswith("jobs: "))
        self.jobs = dict(job.split() for job in line.removeprefix("jobs: ").split(","))

    def log(self) -> str:
        """The output of all jobs, to be shown by a failed test."""
        files = sorted((self.run / "slurm").glob("*.out"))
        return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')}" for file in files)

    def finish(self, seconds: float = 400) -> None:
        try:
            self.cluster.wait(*self.jobs.values(), seconds=seconds)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        for name, job in self.jobs.items():
            assert set(self.cluster.states(job)) == {"COMPLETED"}, f"{name}: {self.cluster.states(job)}\n{self.log()}"


def results(run: Path) -> dict[str, bytes]:
    """The bytes of all files with results."""
    files = [*run.rglob("model.safetensors"), *(run / "knowledge").rglob("*.arrow"), *run.rglob("evaluation.json")]
    found = {str(file.relative_to(run)): file.read_bytes() for file in sorted(files)}
    assert len([name for name in found if name.endswith("model.safetensors")]) == 3, list(found)
    return found


@pytest.fixture(scope="session")
def undisturbed(cluster: slurm.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """An undisturbed run of the recipe as dependent jobs over 2 nodes, with its students as an array of 2 groups."""
    folder = tmp_path_factory.mktemp("slurm")
    os.chmod(folder, 0o755)
    pipeline = Pipeline(cluster, write_inputs(folder), folder, "--nodes=2", "--groups=2", "--cpus=1", "--time=20")
    pipeline.finish()
    return pipeline
