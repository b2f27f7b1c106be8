"""Members with drawn settings: `sample` in place of a `grid`, drawn by Optuna.

All members of a recipe are known before the first is trained, as they are trained side by side. A sampler that learns
from scores learns from those of earlier runs: recipe, run, next recipe with `after: [runs/first]`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from dtrain.errors import InputError
from dtrain.recipe.values import Closed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

DIGITS = 4  # significant ones of a drawn number, so that a resolved recipe can be read and typed


class Range(Closed):
    """From `low` to `high`, both included; whole numbers where both are."""

    low: int | float
    high: int | float
    log: bool = False  # each factor as likely as any other

    @model_validator(mode="after")
    def ascends(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"high: must be a number above low, found {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low: must be above 0 where log is true, found {self.low:g}")
        return self

    def rounded(self, value: float) -> int | float:
        """To `DIGITS`, within the range."""
        if isinstance(value, int):
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), float(self.low)), float(self.high))


Values = Annotated[
    Annotated[Range, Tag("Range")] | Annotated[list[Any], Field(min_length=1), Tag("list")],
    Discriminator(lambda value: "Range" if isinstance(value, dict | Range) else "list"),
]


class Sample(Closed):
    """`count` members, the named keys of each drawn from a range or from a list."""

    count: Annotated[PositiveInt, Field(le=10_000)]
    keys: Annotated[dict[str, Values], Field(min_length=1)]
    # random; qmc: Sobol points, which leave no gaps; tpe: near what scored well in the runs of `after`
    sampler: Literal["random", "qmc", "tpe"] = "random"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    after: list[str] = []  # run folders

    @field_validator("keys")
    @classmethod
    def plain_choices(cls, keys: dict[str, Any]) -> dict[str, Any]:
        for key, values in keys.items():
            if key in ("name", "grid", "sample"):
                raise ValueError(f"{key!r} cannot vary")
            if isinstance(values, list) and not all(isinstance(v, str | int | float | None) for v in values):
                raise ValueError(f"{key}: a list to draw from holds numbers and texts; lists and mappings go to `grid`")
        return keys

    @model_validator(mode="after")
    def learns_from_somewhere(self) -> Sample:
        if (self.sampler == "tpe") != bool(self.after):
            raise ValueError("after: run folders to learn from, for sampler 'tpe' and no other")
        return self


def draw(spec: Sample, section: str, metric: str | None) -> list[dict[str, Any]]:
    """The values of each member by key: a function of the spec, Optuna's version, and the runs in `after`.

    Args:
        section: teachers | students, where members of earlier runs are looked up.
        metric: that earlier members are compared by; None for each one's own.

    Raises:
        InputError: (`key: problem`) Optuna is not installed, or an earlier run teaches nothing.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("sampler: Optuna is not installed; pip install 'dtrain[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: _distribution(values) for key, values in spec.keys.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = {
            "random": lambda: optuna.samplers.RandomSampler(seed=spec.seed),
            "qmc": lambda: optuna.samplers.QMCSampler(scramble=True, seed=spec.seed),
            # Members of one recipe train at the same time: a drawn one keeps the next from its neighbourhood.
            "tpe": lambda: optuna.samplers.TPESampler(
                seed=spec.seed, n_startup_trials=0, multivariate=True, constant_liar=True
            ),
        }[spec.sampler]()
        study = optuna.create_study(direction="maximize", sampler=sampler)
        if spec.sampler == "qmc":
            # Optuna takes the keys of Sobol points from a study's first trial, which it draws at random: not one of ours.
            study.add_trial(optuna.create_trial(params=_any_point(space), distributions=space, value=0.0))
        for path in spec.after:
            found = _trials(Path(path), section, metric, space)
            if not found:
                keys = ", ".join(space)
                raise InputError(f"after: {path}: no finished member of {section} has {keys} within the ranges")
            study.add_trials(found)
        drawn = [study.ask(space).params for _ in range(spec.count)]
    return [{key: _rounded(spec.keys[key], value) for key, value in values.items()} for values in drawn]


def _distribution(values: Range | list[Any]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, list):
        return CategoricalDistribution(values)
    whole = isinstance(values.low, int) and isinstance(values.high, int)
    kind = IntDistribution if whole else FloatDistribution
    return kind(values.low, values.high, log=values.log)  # type: ignore[arg-type]


def _rounded(values: Range | list[Any], value: Any) -> Any:
    return value if isinstance(values, list) else values.rounded(value)


def _any_point(space: Mapping[str, Any]) -> dict[str, Any]:
    return {key: kind.choices[0] if hasattr(kind, "choices") else kind.low for key, kind in space.items()}


def _trials(run: Path, section: str, metric: str | None, space: Mapping[str, BaseDistribution]) -> list[FrozenTrial]:
    """Of an earlier run, what each member within the ranges scored; those that a search stopped with where they came."""
    from optuna import create_trial
    from optuna.trial import TrialState

    from dtrain.recipe.load import load_recipe
    from dtrain.runfolder import RunFolder

    if not (run / "recipe.yaml").is_file():
        raise InputError(f"after: {run}: is not a run folder (no recipe.yaml)")
    try:
        recipe, folder, rungs = load_recipe(str(run / "recipe.yaml")), RunFolder(run), _rungs(run)
    except InputError as error:
        raise InputError(f"after: {error.problems[0]}") from None
    trials = []
    for member in getattr(recipe, section):
        values = {key: _value(member.model_dump(mode="json"), key) for key in space}
        if not all(_within(kind, values[key]) for key, kind in space.items()):
            continue
        scored_by = metric or member.metric
        history = _read(folder.model(section, member.name) / "history.json") or []
        scores = [entry[scored_by] for entry in history if entry["split"] == "valid" and scored_by in entry]
        if scores:
            best = -min(scores) if scored_by == "loss" else max(scores)
            trials.append(create_trial(params=values, distributions=dict(space), value=best))
        elif steps := {epoch: scores[member.name] for epoch, scores in rungs if member.name in scores}:
            stopped = TrialState.PRUNED
            trials.append(
                create_trial(state=stopped, params=values, distributions=dict(space), intermediate_values=steps)
            )
    return trials


def _rungs(run: Path) -> list[tuple[int, dict[str, float]]]:
    """The scores at each comparison of a search; of `loss` the negatives."""
    record = _read(run / "search.json")
    return [(rung["epoch"], rung["scores"]) for rung in record["rungs"]] if record else []


def _read(path: Path) -> Any:
    """What a JSON file holds; None where there is none."""
    from dtrain.runfolder import read_json

    try:
        return read_json(path)
    except OSError:
        return None
    except ValueError:
        raise InputError(f"after: {path} is damaged") from None


def _value(section: Any, key: str) -> Any:
    """What stands at a dotted key; members of lists by number. None where nothing does."""
    for part in key.split("."):
        if isinstance(section, list):
            section = section[int(part)] if part.isdigit() and int(part) < len(section) else None
        else:
            section = section.get(part) if isinstance(section, dict) else None
    return section


def _within(kind: Any, value: Any) -> bool:
    if hasattr(kind, "choices"):
        return value in kind.choices
    return isinstance(value, int | float) and kind.low <= value <= kind.high
