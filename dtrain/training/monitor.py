"""What a person sees of a training run: a progress bar, a line an evaluation, TensorBoard scalars."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dtrain.log import is_main_process, say_anywhere


class Monitor:
    """Progress and logs of one model's training; on ranks that do not speak for it, every method does nothing."""

    def __init__(self, title: str, folder: Path, total_steps: int, first_step: int, *, speaks: bool) -> None:
        self.title = title
        self.speaks = speaks
        self.bar: Any = None
        self.writer: Any = None
        if not speaks:
            return
        if first_step == 0:
            shutil.rmtree(folder, ignore_errors=True)  # curves of an earlier training of this name
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        # A restart hides what a lost process had logged beyond its last checkpoint.
        self.writer = SummaryWriter(str(folder), purge_step=first_step if first_step else None)
        quiet = not (is_main_process() and sys.stderr.isatty())
        self.bar = tqdm(
            total=total_steps,
            initial=first_step,
            desc=title,
            unit="step",
            disable=quiet,
            leave=False,
            dynamic_ncols=True,
        )
        self._since = time.perf_counter()

    def training(self, step: int, values: dict[str, float], rows: int, device: torch.device) -> None:
        """Scalars of the last logged stretch: loss terms, rates, gradient norm; rows/s and memory are added."""
        if not self.speaks:
            return
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, step)
        self.writer.add_scalar("speed/rows_per_second", rows / max(seconds, 1e-9), step)
        self.writer.add_scalar("speed/memory_gib", memory_gib(device), step)
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix(loss=f"{values['loss']:.4f}", rows_s=f"{rows / max(seconds, 1e-9):.0f}")

    def evaluation(
        self, step: int, epoch: float, scores: dict[str, float], best: bool, loss: float, seconds: float
    ) -> None:
        if not self.speaks:
            return
        for name, value in scores.items():
            if name != "rows":
                self.writer.add_scalar(f"valid/{name}", value, step)
        self.writer.flush()
        self.bar.clear()
        say_anywhere(
            f"{self.title}: epoch {epoch:g}, step {step}: train loss {loss:.4f}; valid accuracy {scores['accuracy']:.4f}, "
            f"f1 {scores['f1']:.4f}, loss {scores['loss']:.4f}{' (best so far)' if best else ''}; {seconds:.0f} s"
        )
        self._since = time.perf_counter()

    def hyperparameters(self, values: dict[str, Any], scores: dict[str, float]) -> None:
        """The row of this model in TensorBoard's hparams table."""
        if self.speaks:
            simple = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}
            self.writer.add_hparams(simple, {f"valid_best/{k}": v for k, v in scores.items()}, run_name=".")

    def close(self) -> None:
        if self.speaks:
            self.bar.close()
            self.writer.close()


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process: on the GPU what was allocated there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
