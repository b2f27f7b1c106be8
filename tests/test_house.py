"""Rules for the code: sizes of files, and which modules may import which.

Modules import at their top and in one direction. Imports inside functions are allowed in two cases only: in the command
line, which imports nothing heavy before it knows what to do, and for optional or slow dependencies.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent / "dtrain"
LONGEST = 500  # lines of a file

# Modules that may import inside functions, with the number of such imports.
DOORS = {
    "dtrain.data.records": 1,  # `datasets`, only if a file needs it: it would add a second to `check`
    "dtrain.hub": 2,  # huggingface_hub, only if a recipe names something on the hub
    "dtrain.stages.check": 1,  # the plan for GPUs, with torch, only if there are GPUs
    "dtrain.__main__": 13,  # the command line
    "dtrain.launch": 1,  # the launcher, with torch, which a run of one process does not need
    "dtrain.engines.choose": 4,  # FSDP2, which takes half a second and other engines do not need; deepspeed
    "dtrain.recipe.drawing": 1,  # optuna
    "dtrain.augment.words": 3,  # jieba, nltk
    "dtrain.pretraining.words": 1,  # jieba
    "dtrain.metrics.translation": 2,  # sacrebleu
    "dtrain.models.nezha.convert": 1,  # tensorflow
    "dtrain.models.unpadded": 1,  # torch's variable-length attention, which not every version has
    "dtrain.recipes.samples.make": 1,  # opencc
}


@cache
def modules() -> dict[str, Path]:
    found = sorted(ROOT.rglob("*.py"))
    parent = ROOT.parent
    return {".".join(p.relative_to(parent).with_suffix("").parts).removesuffix(".__init__"): p for p in found}


@cache
def imports(module: str) -> list[tuple[str, bool]]:
    """Modules of the package that `module` imports, except for type checking; with each whether the import is inside a
    function.

    A module from outside the package is given as the empty name.
    """

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((name.name if name.name in modules() else "", inside) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{module} imports relatively"
                homes = {f"{child.module}.{name.name}" for name in child.names} & modules().keys()
                if len(homes) < len(child.names):
                    homes.add(str(child.module) if child.module in modules() else "")
                yield from ((home, inside) for home in homes)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, inside or function)

    return list(visit(ast.parse(modules()[module].read_text(encoding="utf-8")), inside=False))


def circles(arrows: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """The strongly connected components with more than one node: sets of nodes each of which reaches all others."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for target in arrows.get(waiting.pop(), ()):
                if target not in found:
                    found.add(target)
                    waiting.append(target)
        return found

    reach = {node: reached(node) for node in arrows}
    found: list[set[str]] = []
    for node, targets in reach.items():
        circle = {other for other in targets if node in reach.get(other, ())}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def folder(module: str) -> str:
    """A module's folder, or the module itself if it is at the top of the package."""
    return ".".join(module.split(".")[:2])


def test_files_are_short() -> None:
    long = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: lines for name, lines in long.items() if lines > LONGEST} == {}


def test_imports_make_no_circle() -> None:
    arrows = {name: {target for target, _ in imports(name) if target and target != name} for name in modules()}
    assert circles(arrows) == []


def test_folders_import_one_way() -> None:
    """A module that imports nothing from the package, such as the registry of stages, may be imported from anywhere."""
    arrows: dict[str, set[str]] = defaultdict(set)
    leaves = {name for name in modules() if not any(target for target, _ in imports(name))}
    for name in modules():
        arrows[folder(name)] |= {folder(target) for target, _ in imports(name) if target and target not in leaves}
        arrows[folder(name)].discard(folder(name))
    found = circles(arrows)
    assert found == []


def test_imports_are_at_the_top() -> None:
    inside = {name: sum(within for _, within in imports(name)) for name in modules()}
    more = {name: count for name, count in inside.items() if count > DOORS.get(name, 0)}
    assert more == {}, "imports inside functions: move them to the top"
    assert sum(DOORS.values()) <= 60
