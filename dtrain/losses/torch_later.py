"""torch for modules that recipes are checked with: it is imported at the first use of one of its names, not before.

Checking a recipe reads the losses' signatures, and importing torch takes 1.3 s.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    from torch.nn import functional as functional

    from dtrain.losses import adversary as adversary
    from dtrain.losses import variational as variational
else:

    class _Later:
        """Stands for a module until something of it is asked for."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self._name), name)

    torch, functional = _Later("torch"), _Later("torch.nn.functional")
    # modules whose classes are torch modules
    adversary, variational = _Later("dtrain.losses.adversary"), _Later("dtrain.losses.variational")
