"""What a person sees of a training: a progress bar, a line for each evaluation, and TensorBoard's curves."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dtrain.log import is_main_process, say_anywhere
from dtrain.recipe.training import LossSpec, Student, Teacher


class Monitor:
    """Progress bar and TensorBoard files of one model's training; with `speaks` False its methods do nothing.

    Args:
        folder: of the event files; emptied where `first_step` is 0.
        first_step: the step of the checkpoint that training continues from.
    """

    def __init__(self, title: str, folder: Path, total_steps: int, first_step: int, *, speaks: bool) -> None:
        self.title = title
        self.speaks = speaks
        self.bar: Any = None
        self.writer: Any = None
        if not speaks:
            return
        if first_step == 0:
            shutil.rmtree(folder, ignore_errors=True)  # curves of an earlier training of this name
        # Hides what a process that was killed had logged beyond its last checkpoint. TensorBoard drops points from
        # `purge_step` on; those of the checkpoint's own step were logged before it was written, and stay.
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
        quiet = not (is_main_process() and sys.stderr.isatty())
        self.bar = tqdm(
            total=total_steps,
            initial=first_step,
            desc=title,
            # The postfix gives the rate in rows; tqdm's own layout would leave no room for it within 80 columns.
            bar_format="{l_bar}{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            disable=quiet,
            leave=False,
            dynamic_ncols=True,
        )

    def training(
        self, step: int, values: dict[str, float], speed: dict[str, float], trust_ratios: dict[str, torch.Tensor]
    ) -> None:
        """Write a point of each curve: loss terms, rates, norms, speed, and the spread of LAMB's trust ratios."""
        if not self.speaks:
            return
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, step)
        for name, value in speed.items():
            self.writer.add_scalar(f"speed/{name}", value, step)
        for name, tensor in trust_ratios.items():
            if name == "values":
                self.writer.add_histogram("train/trust_ratios", tensor, step)
            else:
                self.writer.add_scalar(f"train/trust_ratio_{name}", float(tensor), step)
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix(loss=f"{values['loss']:.4f}", rows_s=f"{speed['rows_per_second']:.0f}")

    def evaluation(self, step: int, epoch: float, scores: dict[str, float], words: str, seconds: float) -> None:
        """Write the scores on the validation rows to TensorBoard, and print a line with `words`."""
        if not self.speaks:
            return
        for name, value in scores.items():
            if name.rpartition(".")[2] not in ("rows", "characters", "entities"):
                self.writer.add_scalar(f"valid/{name}", value, step)
        self.writer.flush()
        say_anywhere(f"{self.title}: epoch {epoch:g}, step {step}: {words}; {seconds:.0f} s")

    def flush(self) -> None:
        """Write all that was logged so far to the event file, so that it survives a kill of this process."""
        if self.speaks:
            self.writer.flush()

    def close(self) -> None:
        if self.speaks:
            self.bar.close()
            self.writer.close()


_NOT_VARIED = {"name", "grid", "sample", "teachers", "rows", "checkpoint_every", "keep_checkpoints", "keep_epochs"}


def log_hyperparameters(
    folder: Path, spec: Teacher | Student, losses: Sequence[LossSpec], scores: dict[str, Any]
) -> None:
    """Write a model's row of TensorBoard's hparams table, with every setting that a grid may vary, beside its curves.

    Args:
        losses: the terms that it was trained on, for the column of their names.
        scores: of the weights that were kept; accuracy, f1 and loss are shown.
    """
    last = spec.trainings[-1] if isinstance(spec, Student) else spec
    values = {
        "model": spec.model.type,
        "lr": last.optimizer.lr,
        "epochs": spec.all_epochs if isinstance(spec, Student) else spec.epochs,
        "seed": spec.seed,
        "losses": "+".join(loss.type for loss in losses),
    }
    section = spec.model_dump(mode="json", exclude={*values, *_NOT_VARIED})
    terms = {"losses": [loss.model_dump(mode="json") for loss in losses]}
    simple = values | _flat({"model": spec.model.model_dump(mode="json", exclude={"type"})} | section | terms)
    with SummaryWriter(str(folder)) as writer:
        shown = dict.fromkeys(("accuracy", "f1", spec.metric or "loss", "loss"))  # `metric` chose the weights
        metrics = {f"valid_best/{name}": scores[name] for name in shown if name in scores}
        writer.add_hparams(simple, metrics, run_name=".")


def _flat(value: Any, key: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings by dotted keys, as `losses.0.temperature`; None is left out, a list of numbers becomes one text."""
    if value is None:
        return {}
    if isinstance(value, bool | int | float | str):
        return {key: value}
    inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    if not any(isinstance(item, dict) for _, item in inner) and isinstance(value, list):
        return {key: ", ".join(map(str, value))}
    return {k: v for name, item in inner for k, v in _flat(item, f"{key}.{name}" if key else str(name)).items()}
