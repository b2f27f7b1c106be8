"""The scripts of `launch/slurm/` on a real cluster: every stage, stopped, pre-empted, requeued, and with nodes lost."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster import OVER, Cluster, wait_for
from conftest import ROOT, Pipeline, results

HELLO = """\
import json, socket, sys
import torch
from dtrain.runtime.distributed import connect, leave
world = connect(timeout=60)
told = world.gather_objects([world.rank, socket.gethostname()])
total = int(world.sum(torch.tensor([world.rank]))[0])
if world.is_main:
    json.dump({"size": world.size, "sum": total, "told": told}, open(sys.argv[1], "w"))
leave(0)
"""


def batch(cluster: Cluster, folder: Path, line: str, *options: str, seconds: float = 120) -> tuple[str, str]:
    """Run one line as a batch script on 2 nodes; returns its exit code and its output."""
    script = folder / "job.sh"
    script.write_text(f"#!/usr/bin/env bash\n{line}\n")
    output = folder / "job.out"
    job = cluster.submit("--nodes=2", "--ntasks-per-node=1", f"--output={output}", *options, script)
    cluster.wait(job, seconds=seconds)
    return cluster.show(job)["ExitCode"].split(":")[0], output.read_text()


def test_hello_from_a_world_of_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """Plain `accelerate launch` with a launcher on each node forms the world that was requested from SLURM and the
    launcher.
    """
    (tmp_path / "hello.py").write_text(HELLO)
    code, told = batch(
        cluster,
        tmp_path,
        f"srun bash -c '{sys.executable} -m accelerate.commands.launch --multi_gpu --num_machines $SLURM_NNODES "
        "--num_processes 4 --machine_rank $SLURM_NODEID --main_process_ip n1 --main_process_port $((21000 + SLURM_JOB_ID)) "
        f"--mixed_precision no --dynamo_backend no {tmp_path}/hello.py {tmp_path}/world.json'",
    )
    assert code == "0", told
    world = json.loads((tmp_path / "world.json").read_text())
    assert world == {"size": 4, "sum": 6, "told": [[0, "n1"], [1, "n1"], [2, "n2"], [3, "n2"]]}


def test_unconnected_tasks_are_refused(undisturbed: Pipeline, tmp_path: Path) -> None:
    """Without a launcher each task would train alone and overwrite the other's files; the same holds for a single
    launch on the first node.
    """
    recipe = undisturbed.run / "slurm" / "recipe.yaml"
    words = f"{sys.executable} -m dtrain finetune {recipe} output_dir={tmp_path}/runs"
    code, told = batch(undisturbed.cluster, tmp_path, f"srun {words}; a=$?; {words}; echo codes $a $?")
    assert "codes 2 2" in told, told
    assert "started 2 tasks as ranks, but a world of 1 formed" in told
    assert "has 2 nodes, but a world of 1 formed on one of them" in told
    assert told.count("sbatch launch/slurm/stage.sbatch finetune") == 2  # once each
    assert not (tmp_path / "runs").exists()


def test_a_recipe_as_dependent_jobs(undisturbed: Pipeline) -> None:
    cluster, jobs, run = undisturbed.cluster, undisturbed.jobs, undisturbed.run
    assert list(jobs) == ["prepare", "finetune", "precompute", "distill", "report"]
    nodes = {name: cluster.show(job)["NumNodes"] for name, job in jobs.items()}
    assert nodes == {"prepare": "1", "finetune": "2", "precompute": "2", "distill": "1", "report": "1"}
    assert "textcnn" in undisturbed.log()
    assert "2 ranks" in undisturbed.log()  # one on each node; the quickstart has two
    assert len(cluster.states(jobs["distill"])) == 2  # an array
    for group, seed in enumerate((1, 2)):
        (log,) = (run / "slurm").glob(f"distill-*-{group}.out")
        assert f"lstm-seed{seed}: best" in log.read_text()
        assert f"lstm-seed{3 - seed}" not in log.read_text()
    report = json.loads((run / "report" / "results.json").read_text())
    assert {model["name"] for model in report["models"]} == {"cnn", "lstm-seed1", "lstm-seed2"}
    for words in ("squeue --jobs=", "tensorboard --logdir", "ssh -N -L 6006"):
        assert words in undisturbed.told
    assert not list(run.rglob(".tmp-*"))


def test_the_quickstart_over_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """The shipped recipe with one epoch for each model, from text to the report, as jobs."""
    tmp_path.chmod(0o755)
    members = [f"teachers.{number}" for number in range(2)] + [f"students.{number}" for number in range(4)]
    shorter = [f"{member}.{change}" for member in members for change in ("epochs=1", "batch_size=256")]
    changes = [*shorter, "launch.processes=2", "report.latency=false", "--nodes=2", "--cpus=2", "--gpus=2", "--time=20"]
    pipeline = Pipeline(cluster, "quickstart", tmp_path, *changes, name="quickstart")
    pipeline.finish()
    assert "4 ranks" in pipeline.log()
    asked = {name: "gpu:2" in cluster.show(job).get("TresPerNode", "") for name, job in pipeline.jobs.items()}
    assert asked == {name: name != "prepare" for name in asked}
    report = json.loads((pipeline.run / "report" / "results.json").read_text())
    assert len(report["models"]) == 6
    assert not report["failed"]
    assert all(model["rows"] == model["test"]["rows"] == 600 for model in report["models"])


def steps(run: Path, kind: str, name: str = "*") -> Callable[[], object]:
    return lambda: list((run / "checkpoints" / kind).glob(f"{name}/step-*"))


def ask_to_stop(cluster: Cluster, stage: str, job: str) -> None:
    """Ask a job to stop, in each of the ways in which SLURM does so."""
    if stage == "finetune":  # pre-empted by a job that leaves it too few nodes
        urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        cluster.submit(*urgent)
    elif stage == "distill":  # what most sites send: SIGTERM to the steps, not to the script
        cluster.run("scancel", "--signal=TERM", job)
    else:  # what `--signal=B:USR1@120` sends
        cluster.run("scancel", "--batch", "--signal=USR1", job)


def test_stopped_in_every_stage_and_requeued(undisturbed: Pipeline, tmp_path: Path) -> None:
    """Every job continues where it was stopped (of an array only the task that was asked), and ends with the same
    bytes.
    """
    cluster = undisturbed.cluster
    recipe = undisturbed.run / "slurm" / "recipe.yaml"
    pipeline = Pipeline(cluster, recipe, tmp_path, "--nodes=2", "--groups=2", "--cpus=1", "--time=20")
    at_work = {
        "finetune": steps(pipeline.run, "teachers"),
        "precompute": lambda: list(pipeline.run.rglob(".tmp-*")) or list((pipeline.run / "knowledge").rglob("*.arrow")),
        "distill": steps(pipeline.run, "students", "lstm-seed2"),
    }

    def script_runs(name: str) -> bool:  # a signal that is sent before the script runs would be lost
        return bool(list((pipeline.run / "slurm").glob(f"{name}-*.out"))) and not time.sleep(0.3)

    for name, job in pipeline.jobs.items():
        began = at_work.get(name, lambda name=name: script_runs(name))
        wait_for(lambda job=job: "RUNNING" in cluster.states(job), 60)
        one = f"{job}_1" if name == "distill" else job  # task 1 has the id of the array itself
        wait_for(lambda one=one, began=began: cluster.states(one) == ["RUNNING"] and began(), 200)
        ask_to_stop(cluster, name, one)
        wait_for(lambda one=one: "PENDING" in cluster.states(one) or cluster.show(one)["Restarts"] != "0", 120)
        cluster.wait(job, seconds=200)
        # Only once: the script was faster than the grace period of a pre-empted job.
        assert cluster.show(one)["Restarts"] == "1", f"{name}\n{pipeline.log()}"
    assert cluster.show(f"{pipeline.jobs['distill']}_0")["Restarts"] == "0"
    pipeline.finish()
    assert pipeline.log().count("stopped on request: requeued (1 of 5)") == len(pipeline.jobs)
    assert results(pipeline.run) == results(undisturbed.run)


def copy_of(undisturbed: Pipeline, folder: Path, *without: str) -> Path:
    """Copy the undisturbed run to a folder of its own; returns the new run folder."""
    run = folder / "runs" / "tiny"
    shutil.copytree(undisturbed.run, run, ignore=shutil.ignore_patterns("slurm", "checkpoints"))
    for name in without:
        shutil.rmtree(run / name)
    return run


def submit_stage(undisturbed: Pipeline, folder: Path, stage: str, *words: str) -> str:
    """Submit a job of one stage as a user would by hand; its output is in `job.out`."""
    cluster = undisturbed.cluster
    recipe = undisturbed.run / "slurm" / "recipe.yaml"
    cluster.environment["DTRAIN_PYTHON"] = sys.executable
    options = ["--cpus-per-task=1", "--time=20", f"--output={folder}/job.out"]
    options += [word for word in words if word.startswith("--")]
    changes = [word for word in words if not word.startswith("--")]
    script = ROOT / "launch" / "slurm" / "stage.sbatch"
    return cluster.submit(*options, script, stage, recipe, f"output_dir={folder}/runs", *changes)


def test_what_is_not_requeued_ends(undisturbed: Pipeline, tmp_path: Path) -> None:
    """The job ends with 75 and the reason, and nothing is queued after it. The cases run at the same time, since each
    mostly waits for SLURM.
    """
    cluster = undisturbed.cluster
    recipe = undisturbed.run / "slurm" / "recipe.yaml"
    endless = ("launch.processes=1", "teachers.0.epochs=1000000")
    runs = {name: copy_of(undisturbed, tmp_path / name, "teachers") for name in ("bound", "stop", "cancel", "by-hand")}
    pipelines = {
        "bound": Pipeline(cluster, recipe, tmp_path / "bound", *endless, "--requeues=0", "--cpus=1"),
        "stop": Pipeline(cluster, recipe, tmp_path / "stop", *endless, "--cpus=1"),
    }
    jobs = {name: pipeline.jobs["finetune"] for name, pipeline in pipelines.items()}
    # These scripts were not given the run folder; they find it from the recipe.
    by_hand = ("cancel", "by-hand")
    jobs |= {name: submit_stage(undisturbed, tmp_path / name, "finetune", *endless) for name in by_hand}
    every = [*jobs.values(), *(job for pipeline in pipelines.values() for job in pipeline.jobs.values())]
    try:
        for run in runs.values():
            wait_for(steps(run, "teachers"), 200)
        cluster.run("scancel", "--batch", "--signal=USR1", jobs["bound"])
        (runs["stop"] / "STOP").touch()
        cluster.run("scancel", jobs["cancel"])
        (runs["by-hand"] / "STOP").touch()
        wait_for(lambda: all(state in OVER for job in every for state in cluster.states(job)), 120)
    finally:
        cluster.run("scancel", *every, check=False)  # jobs that would run for ever and block other tests
    told = {name: pipeline.log() for name, pipeline in pipelines.items()}
    told |= {name: (tmp_path / name / "job.out").read_text() for name in by_hand}
    for name, job in jobs.items():
        shown = cluster.show(job)
        expected = ("CANCELLED", "0") if name == "cancel" else ("FAILED", "0")
        assert (shown["JobState"], shown["Restarts"]) == expected, told[name]
        assert name == "cancel" or shown["ExitCode"] == "75:0", told[name]
        assert "stopped on request: requeued" not in told[name]
    assert "and not requeued again: submit it again" in told["bound"]
    assert f"not requeued: remove {runs['stop']}/STOP" in told["stop"]
    assert f"not requeued: remove {runs['by-hand']}/STOP" in told["by-hand"]
    for pipeline in pipelines.values():
        assert cluster.states(pipeline.jobs["prepare"]) == ["COMPLETED"]
        after = [cluster.states(pipeline.jobs[name]) for name in ("precompute", "distill", "report")]
        assert after == [["CANCELLED"]] * 3


def scores_of(kind: str, name: str) -> bool:
    return name.startswith(kind) and name.endswith("evaluation.json")


def test_a_lost_node(undisturbed: Pipeline, tmp_path: Path) -> None:
    """A power cut in the middle: SLURM requeues both jobs, which continue from checkpoints on the nodes they get.

    One job loses its second node, the other its first, on which its script runs and its ranks meet, so that only SLURM
    itself can requeue it.
    """
    cluster = undisturbed.cluster
    first, lost, third = cluster.names
    wait_for(lambda: cluster.idle() == cluster.names, 60)
    stages = {"finetune": "teachers", "distill": "students"}
    runs = {stage: copy_of(undisturbed, tmp_path / stage, kind) for stage, kind in stages.items()}
    jobs = {"finetune": submit_stage(undisturbed, tmp_path / "finetune", "finetune", "--nodes=2")}
    wait_for(lambda: cluster.states(jobs["finetune"]) == ["RUNNING"], 60)
    # Occupies the first node, so that the second job starts on the next one.
    filler = cluster.submit(f"--nodelist={first}", "--cpus-per-task=3", "--output=/dev/null", "--wrap=sleep 600")
    wait_for(lambda: cluster.states(filler) == ["RUNNING"], 60)
    jobs["distill"] = submit_stage(undisturbed, tmp_path / "distill", "distill", "--nodes=2")
    try:
        wait_for(steps(runs["finetune"], "teachers"), 120)
        # Otherwise it would end before the other job has started training.
        assert cluster.suspend(jobs["finetune"], lost) == 1
        wait_for(steps(runs["distill"], "students"), 120)
        assert [cluster.nodes_of(job) for job in jobs.values()] == [[first, lost], [lost, third]]
        cluster.kill_node(lost)
        cluster.run("scancel", filler)
        wait_for(lambda: all(cluster.states(job) == ["PENDING"] for job in jobs.values()), 90)
        cluster.wait(*jobs.values(), seconds=200)
    finally:
        cluster.run("scancel", filler, *jobs.values(), check=False)
        cluster.start_node(lost)
    expected = results(undisturbed.run)
    for stage, job in jobs.items():
        assert cluster.states(job) == ["COMPLETED"], (tmp_path / stage / "job.out").read_text()
        assert cluster.show(job)["Restarts"] == "1"
        assert cluster.nodes_of(job) == [first, third]
        not_scored = {name: found for name, found in expected.items() if not scores_of(stages[stage], name)}
        assert results(runs[stage]) == not_scored
