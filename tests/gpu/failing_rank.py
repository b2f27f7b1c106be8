"""`dtrain` whose rank 1 raises an error in its tenth step: `python failing_rank.py run RECIPE ...`, with the arguments
of `dtrain`.
"""

from __future__ import annotations

import os

import dtrain.training.state as state
from dtrain.__main__ import entry

_begin = state.TrainState.begin_step


def begin_step(self: state.TrainState) -> None:
    if os.environ.get("RANK") == "1" and self.position.step == 10:
        raise RuntimeError("this rank was made to fail")
    _begin(self)


state.TrainState.begin_step = begin_step  # type: ignore[method-assign]

if __name__ == "__main__":
    entry()
