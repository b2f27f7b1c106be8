"""A teacher that is not trained: its folder is copied into the run, and it is scored on this run's validation rows."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from dtrain.data import resolve_path, tokenizer_name
from dtrain.data.external import model_files
from dtrain.engines.precision import resolve_precision
from dtrain.log import say
from dtrain.models import load, parameter_count
from dtrain.recipe.training import Teacher
from dtrain.runfolder import RunFolder, mark_done, publish_folder, write_json
from dtrain.runtime.distributed import World
from dtrain.training.remarks import remarks
from dtrain.training.workers import Workers

if TYPE_CHECKING:
    from dtrain.tasks.prepared import PreparedTask


def publish_external(teacher: Teacher, identity: str, of: PreparedTask, world: World, folder: RunFolder) -> None:
    """Publish a teacher that the recipe takes from a folder; every rank calls this.

    Args:
        of: the task that it is for.

    Raises:
        InputError: the folder's weights are damaged, or not what its config.json describes.
    """
    assert teacher.source is not None
    source, final = resolve_path(teacher.source), folder.model("teachers", teacher.name)
    model, data, task, recipe = load(source), of.data, of.kind, of.recipe
    tokenizer = tokenizer_name(teacher)
    precision = resolve_precision(teacher.precision, world.device, f"teachers.{teacher.name}.precision")
    scores, found = {}, []
    if "valid" in data.label_counts(tokenizer):  # otherwise no validation row has the side that it reads
        valid = data.part("valid", tokenizer)
        scores = task.scores(model, valid, Workers.of(world, precision, recipe.knowledge.batch_tokens))
        found = remarks([scores], scores, valid.labels, [] if task.types else task.labels)
    size = (source / "model.safetensors").stat().st_size
    metrics: dict[str, Any] = {**scores, "split": "valid", "parameters": parameter_count(model), "bytes": size}
    metrics["remarks"] = found

    def publish() -> None:
        with publish_folder(final) as aside:
            for file in model_files(source):
                shutil.copyfile(file, aside / file.name)
            card = f"# {teacher.name}\n\nTaken as it is from {source}.\n\nLoad it with `dtrain.load(folder)`.\n"
            (aside / "README.md").write_text(card, encoding="utf-8")
            write_json(aside / "metrics.json", metrics)
            write_json(aside / "history.json", [])
            mark_done(aside, identity)

    world.run_on_main(publish)
    told = f"{task.headline(scores)} on valid" if scores else "not scored"
    say(f"teacher {teacher.name}: from {source}: {told} -> {final}")
    for remark in found:
        say(f"teacher {teacher.name}: REMARK: {remark}")
