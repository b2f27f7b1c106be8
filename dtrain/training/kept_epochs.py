"""The weights of a model at the end of each epoch of its training, and those that it began with (epoch 0).

epochs/<student>/0000.safetensors   0001.safetensors   ...      names of weights as in the model's own folder
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from dtrain.models.folder import write_weights
from dtrain.runfolder import ASIDE

# Saves the weights of an epoch, given the epoch (counted from the beginning of this training) and the weights.
KeepEpoch = Callable[[int, Mapping[str, Tensor]], None]


def keeper(folder: Path, identity: str, first_epoch: int) -> KeepEpoch:
    """A function that saves epochs in `folder`.

    Args:
        identity: the fingerprint of the training.
        first_epoch: the student's epoch at which this training begins; not 0 in a later phase.
    """
    return functools.partial(_keep, folder, identity, first_epoch)


def _keep(folder: Path, identity: str, first_epoch: int, epoch: int, weights: Mapping[str, Tensor]) -> None:
    if epoch == 0:
        if first_epoch:  # the phase before has saved this epoch
            return
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier student of this name
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(weights, _place(folder, first_epoch + epoch), {"training": identity})


def kept_epochs(folder: Path, identity_at: Callable[[int], str | None]) -> list[int]:
    """The epochs whose weights are in `folder`, ascending.

    Args:
        identity_at: gives the fingerprint of the training that an epoch belongs to; None where it belongs to none.
    """
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith(ASIDE) or not path.stem.isdigit():
            continue
        identity = identity_at(int(path.stem))
        try:
            with safe_open(path, "pt") as file:
                same = (file.metadata() or {}).get("training") == identity
        except (OSError, SafetensorError):
            continue
        if same and identity is not None:
            found.append(int(path.stem))
    return found


def weights_at(folder: Path, epoch: int) -> dict[str, Tensor]:
    """The weights of an epoch that `kept_epochs` has found."""
    return load_file(_place(folder, epoch))


def _place(folder: Path, epoch: int) -> Path:
    return folder / f"{epoch:04d}.safetensors"
