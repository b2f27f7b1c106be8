"""`dtrain submit`: a recipe as SLURM jobs that wait for each other.

The scripts of `launch/slurm/` are the plan. They are written into the run folder with their settings filled in,
beside the recipe as it is resolved now, so that jobs that start tomorrow do what was submitted today.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe import Recipe, dump_recipe
from dtrain.runfolder import atomic_write
from dtrain.stages import job_lines

TIME = re.compile(r"\d+(:\d{2}){0,2}|\d+-\d+(:\d{2}){0,2}")  # minutes, [hours:]minutes:seconds, days-hours[...]


@dataclass(frozen=True)
class Cluster:
    """The resources that jobs ask for; the fields are settings of `pipeline.sh`."""

    partition: str
    nodes: int
    gpus: int
    cpus: int
    time: str
    groups: int
    requeues: int

    def problems(self) -> list[str]:
        least = {"nodes": 1, "gpus": 0, "cpus": 1, "groups": 1, "requeues": 0}
        found = [
            f"--{name}: {getattr(self, name)} (allowed: {low} or more)"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if not TIME.fullmatch(self.time):
            found.append(f"--time: {self.time} (allowed: minutes, HH:MM:SS or D-HH:MM:SS)")
        if not re.fullmatch(r"[\w.,-]*", self.partition):
            found.append(f"--partition: {self.partition!r} is no partition's name")
        return found


def submit(recipe: Recipe, cluster: Cluster, *, dry_run: bool, local: bool) -> int:
    """Write the scripts into `<run>/slurm/`, run the pipeline script, and return its exit code.

    Args:
        dry_run: print what would be submitted, write nothing.
        local: run the same stages here, one after another.

    Raises:
        InputError: an option has a value that is not allowed, or SLURM is not installed.
    """
    problems = cluster.problems()
    if recipe.search and cluster.groups > 1:
        problems.append(f"--groups: {cluster.groups}, but the recipe's `search` compares all students (allowed: 1)")
    if not (dry_run or local) and shutil.which("sbatch") is None:
        problems.append("submit: there is no sbatch here (--local runs the same plan on this machine)")
    if problems:
        raise InputError(problems)
    root = Plan(recipe).folder.root
    folder = root / "slurm"
    settings = {name: str(value) for name, value in vars(cluster).items()}
    settings["groups"] = str(max(1, min(cluster.groups, len(recipe.students))))
    settings["jobs"] = "\n".join(job_lines(recipe))
    # A dry run writes no recipe, so that the script's own check has nothing to read.
    settings |= {"python": "true" if dry_run else sys.executable, "run": str(root), "scripts": str(folder)}
    pipeline = fill((templates() / "pipeline.sh").read_text(encoding="utf-8"), settings)
    if dry_run:
        words = ["bash", "-s", "--", str(folder / "recipe.yaml")]
        return subprocess.run(words, input=pipeline, text=True, env=os.environ | {"DRY_RUN": "1"}).returncode
    write_scripts(folder, pipeline, dump_recipe(recipe))
    words = ["bash", str(folder / "pipeline.sh"), str(folder / "recipe.yaml")]
    return subprocess.run(words, env=os.environ | ({"LOCAL": "1"} if local else {})).returncode


def write_scripts(folder: Path, pipeline: str, recipe: str) -> None:
    """Write the three files of a submitted run."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = (templates() / "stage.sbatch").read_text(encoding="utf-8")
    for name, text in (("recipe.yaml", recipe), ("stage.sbatch", stage), ("pipeline.sh", pipeline)):
        with atomic_write(folder / name) as file:
            file.write(text)


def fill(script: str, settings: dict[str, str]) -> str:
    """The script with new values in the `name=value` lines of its settings; comments stay."""
    for name, value in settings.items():
        line = f"{name}={shlex.quote(value) if value else ''}"
        script, count = re.subn(rf"(?m)^{name}=.*?(?=\s*(#|$))", line.replace("\\", r"\\"), script)
        if count != 1:
            raise ValueError(f"pipeline.sh has {count} lines for the setting {name}")
    return script


def templates() -> Path:
    """`launch/slurm/` of a checkout, or the copy installed with the package."""
    package = Path(__file__).parent
    beside = package.parent / "launch" / "slurm"
    return beside if beside.is_dir() else package / "slurm"
