"""Drawing the settings of a `sample` with Optuna.

All models of a recipe are drawn before the first is trained, as they are trained side by side. So a sampler that learns
from scores learns from those of earlier runs, which the next recipe names: `after: [runs/first]`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dtrain.errors import InputError
from dtrain.recipe.sample import Range, Sample
from dtrain.runfolder import DamagedFile, RunFolder, read_json

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def draw(spec: Sample, section: str, metric: str | None) -> list[dict[str, Any]]:
    """Draw the settings of every model, by key. They depend on the spec, Optuna's version and the runs in `after` only.

    Args:
        section: `teachers` or `students`: the section of earlier runs whose models are learnt from.
        metric: the metric by which models of earlier runs are compared; None: each one's own.

    Raises:
        InputError: (as `key: problem`) Optuna is not installed, or an earlier run has no model to learn from.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("sampler: Optuna is not installed; pip install 'dtrain[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: _distribution(values, optuna.distributions) for key, values in spec.keys.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = {
            "random": lambda: optuna.samplers.RandomSampler(seed=spec.seed),
            "qmc": lambda: optuna.samplers.QMCSampler(scramble=True, seed=spec.seed),
            # No model has a score when the next is drawn: constant_liar keeps them from being drawn close together.
            "tpe": lambda: optuna.samplers.TPESampler(
                seed=spec.seed, n_startup_trials=0, multivariate=True, constant_liar=True
            ),
        }[spec.sampler]()
        study = optuna.create_study(direction="maximize", sampler=sampler)
        if spec.sampler == "qmc":
            # Optuna learns the search space of Sobol points from a study's first trial, which is not among those drawn.
            study.add_trial(optuna.create_trial(params=_any_point(space), distributions=space, value=0.0))
        state = optuna.trial.TrialState
        for path in spec.after:
            told = _scores(Path(path), section, metric, space)
            if not told:
                keys = ", ".join(space)
                raise InputError(f"after: {path}: no finished member of {section} has {keys} within the ranges")
            for settings, score, steps in told:
                study.add_trial(
                    optuna.create_trial(
                        state=state.PRUNED if score is None else state.COMPLETE,
                        params=settings,
                        distributions=space,
                        value=score,
                        intermediate_values=steps,
                    )
                )
        drawn = [study.ask(space).params for _ in range(spec.count)]
    return [{key: _rounded(spec.keys[key], value) for key, value in values.items()} for values in drawn]


def _distribution(values: Range | list[Any], kinds: Any) -> BaseDistribution:
    """The distribution of one key; `kinds` is the module `optuna.distributions`."""
    if isinstance(values, list):
        found: BaseDistribution = kinds.CategoricalDistribution(values)
        return found
    whole = isinstance(values.low, int) and isinstance(values.high, int)
    kind = kinds.IntDistribution if whole else kinds.FloatDistribution
    found = kind(values.low, values.high, log=values.log)
    return found


def _rounded(values: Range | list[Any], value: Any) -> Any:
    return value if isinstance(values, list) else values.rounded(value)


def _any_point(space: Mapping[str, Any]) -> dict[str, Any]:
    return {key: kind.choices[0] if hasattr(kind, "choices") else kind.low for key, kind in space.items()}


def _scores(
    run: Path, section: str, metric: str | None, space: Mapping[str, BaseDistribution]
) -> list[tuple[dict[str, Any], float | None, dict[int, float]]]:
    """Each model of an earlier run whose settings are within the ranges: settings, best score, scores by epoch.

    For a model that a search stopped, the best score is None, and the scores by epoch are those at the comparisons of
    the search; all others have no scores by epoch. Higher is better: a loss is negated.
    """
    if not (run / "recipe.yaml").is_file():
        raise InputError(f"after: {run}: is not a run folder (no recipe.yaml)")
    try:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))  # resolved, as a run writes it
        members = [member for member in recipe.get(section) or [] if "model" in member]
    except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError):
        raise InputError(f"after: {run / 'recipe.yaml'} is damaged") from None
    folder, rungs = RunFolder(run), _rungs(run)
    found: list[tuple[dict[str, Any], float | None, dict[int, float]]] = []
    for member in members:
        settings = {key: _value(member, key) for key in space}
        if not all(_within(kind, settings[key]) for key, kind in space.items()):
            continue
        scored_by = metric or member["metric"]
        history = _read(folder.model(section, member["name"]) / "history.json") or []
        scores = [entry[scored_by] for entry in history if entry["split"] == "valid" and scored_by in entry]
        if scores:
            found.append((settings, -min(scores) if scored_by == "loss" else max(scores), {}))
        elif steps := {epoch: scores[member["name"]] for epoch, scores in rungs if member["name"] in scores}:
            found.append((settings, None, steps))
    return found


def _rungs(run: Path) -> list[tuple[int, dict[str, float]]]:
    """The epoch and the scores, by model, of each comparison of a search; for `loss`, negative losses."""
    record = _read(run / "search.json")
    return [(rung["epoch"], rung["scores"]) for rung in record["rungs"]] if record else []


def _read(path: Path) -> Any:
    """The content of a JSON file; None if there is no such file."""
    try:
        return read_json(path)
    except OSError:
        return None
    except DamagedFile:
        raise InputError(f"after: {path} is damaged") from None


def _value(section: Any, key: str) -> Any:
    """The value at a dotted key, in which list items go by number; None if there is none."""
    for part in key.split("."):
        if isinstance(section, list):
            section = section[int(part)] if part.isdigit() and int(part) < len(section) else None
        else:
            section = section.get(part) if isinstance(section, dict) else None
    return section


def _within(kind: Any, value: Any) -> bool:
    """Whether a distribution can give a value."""
    if hasattr(kind, "choices"):
        return value in kind.choices
    return isinstance(value, int | float) and kind.low <= value <= kind.high
