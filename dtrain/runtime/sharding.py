"""What a launch asks for: a copy of the model on every rank (DDP), or its training spread over them (FSDP2, ZeRO).

`accelerate launch` says so in environment variables. dtrain reads and removes them, so that Accelerate connects the
processes and does nothing else, and spreads the model itself (`dtrain.engines.choose`). Left to itself Accelerate 1.15
silently ignores DeepSpeed and turns FSDP2 into DDP on CPUs, replaces the recipe's optimizer by DeepSpeed's Adam under
offload, clips gradients to 1.0 unasked, and lets transformers cut up models that a rank needs whole (students, and
teachers that only answer).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dtrain.errors import InputError

SWITCHES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
STAGES = (1, 2, 3)


@dataclass(frozen=True)
class Sharding:
    """How all ranks train one model together."""

    kind: Literal["ddp", "fsdp2", "zero"] = "ddp"
    where: str = ""  # the file or key to name in messages
    reshard: bool = True  # FSDP2: free gathered parameters between forward and backward
    deepspeed: dict[str, Any] = field(default_factory=dict)  # the content of its JSON file


def take_variables(environment: MutableMapping[str, str]) -> dict[str, str]:
    """The launch's variables about sharding; those that Accelerate would act on are removed from `environment`."""
    found = {k: v for k, v in environment.items() if k in SWITCHES or k.startswith(("FSDP_", "ACCELERATE_DEEPSPEED_"))}
    for name in SWITCHES:
        environment.pop(name, None)
    return found


def read_sharding(variables: Mapping[str, str]) -> Sharding:
    """What the variables from `take_variables` ask for.

    Raises:
        InputError: it is not supported; the message says what to set instead.
    """
    if _true(variables, "ACCELERATE_USE_DEEPSPEED"):
        named = variables.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        if named == "none":
            raise InputError(
                "deepspeed_config: name a JSON file (deepspeed_config_file: ds_configs/zero2.json) instead of single keys"
            )
        return read_deepspeed(named)
    if _true(variables, "ACCELERATE_USE_FSDP"):
        return _read_fsdp(variables)
    return Sharding()


def _read_fsdp(variables: Mapping[str, str]) -> Sharding:
    where = "fsdp_config"
    if variables.get("FSDP_VERSION", "1") != "2":
        raise InputError(
            f"{where}.fsdp_version: {variables.get('FSDP_VERSION', '1')} (allowed: 2; FSDP1 keeps no whole parameters)"
        )
    if _true(variables, "FSDP_OFFLOAD_PARAMS"):
        raise InputError(f"{where}.fsdp_offload_params: is not supported; zero2_offload and zero3_offload are")
    if _true(variables, "FSDP_ACTIVATION_CHECKPOINTING"):
        raise InputError(f"{where}.fsdp_activation_checkpointing: set activation_checkpointing: true on the teacher")
    reshard = variables.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if reshard not in ("true", "false", "full_shard", "shard_grad_op"):
        raise InputError(f"{where}.fsdp_reshard_after_forward: {reshard} (allowed: true, false)")
    return Sharding("fsdp2", where, reshard=reshard in ("true", "full_shard"))


def _true(variables: Mapping[str, str], name: str) -> bool:
    return variables.get(name, "false").lower() in ("true", "1", "yes")


def read_deepspeed(named: str) -> Sharding:
    """A DeepSpeed JSON config, by its path or by its name in `ds_configs/`.

    Raises:
        InputError: naming the file, and each setting under which training would not be the recipe's.
    """
    candidates = [Path(named), configs_folder("ds_configs") / Path(named).name]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        names = ", ".join(sorted(p.stem for p in configs_folder("ds_configs").glob("*.json")))
        raise InputError(f"deepspeed_config_file: {named}: no such file (shipped in ds_configs/: {names})")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}:1: must be a JSON object")
    problems = [f"{path}: {problem}" for problem in _deepspeed_problems(config)]
    if problems:
        raise InputError(problems)
    return Sharding("zero", str(path), deepspeed=config)


def _deepspeed_problems(config: dict[str, Any]) -> list[str]:
    problems = []
    zero = config.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in STAGES:
        # Stage 0 in 16 bits also calls optimizer.step() on zero gradients when it is built: weights shrink.
        problems.append(f"zero_optimization.stage: {stage!r} (allowed: 1, 2, 3; stage 0 is DDP: use a ddp config)")
    optimizer = config.get("optimizer")
    if optimizer is not None:
        kind = optimizer.get("type") if isinstance(optimizer, dict) else optimizer
        why = "the recipe's optimizer is used"
        if str(kind).lower() in ("lamb", "onebitlamb"):
            # FusedLamb takes the norm of each tensor that it is handed: whole parameters at stage 0 only.
            why = "under ZeRO its trust ratio would be that of a flat partition; say optimizer: {type: lamb} in the recipe"
        problems.append(f"optimizer: {kind!r}: remove it; {why}")
    if config.get("scheduler") is not None:
        problems.append("scheduler: remove it; the recipe's schedule is used")
    offload = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    sections: dict[str, Any] = {key: config[key] for key in ("fp16", "bf16") if key in config}
    if offload is not None:
        sections["zero_optimization.offload_optimizer"] = offload
    for key, section in sections.items():
        if not isinstance(section, dict):
            problems.append(f"{key}: {section!r} (must be a JSON object)")
    offloads = isinstance(offload, dict) and offload.get("device", "none") != "none"
    if offloads and config.get("zero_force_ds_cpu_optimizer", True) is not False:
        problems.append(
            "zero_force_ds_cpu_optimizer: must be false: else DeepSpeed's Adam takes the place of the recipe's optimizer"
        )
    return problems


def configs_folder(name: str) -> Path:
    """`accelerate_configs/` or `ds_configs/` of a checkout, or the copy installed with the package."""
    package = Path(__file__).parent
    beside = package.parent / name
    return beside if beside.is_dir() else package / name
