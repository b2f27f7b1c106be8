"""Register the package's own transformers with the Auto classes as soon as transformers' are imported, not before.

transformers and torch take seconds to import; `import dtrain` must not, and yet after it
`AutoModel.from_pretrained` must know NEZHA.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

AUTO = {f"transformers.models.auto.{name}_auto" for name in ("configuration", "modeling", "tokenization")}


class _ThenRegister(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        # One of the three imports another while it is half imported itself: registering then would meet a
        # cycle, and waits for the outer one.
        others = [sys.modules[name] for name in AUTO - {module.__name__} if name in sys.modules]
        if not any(getattr(other.__spec__, "_initializing", False) for other in others):
            _register()


class _Watch(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in AUTO:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


def _register() -> None:
    from dtrain.models.nezha import register

    register()


def register_when_imported() -> None:
    """Register now if transformers' Auto classes are there already, else right after they are imported."""
    sys.meta_path.insert(0, _Watch())  # also when some are there: the others may come later
    if AUTO & set(sys.modules):
        _register()
