"""DeepSpeed's config, completed from the recipe."""

from __future__ import annotations

import copy
from typing import Any

from dtrain.errors import InputError
from dtrain.recipe.training import TrainSpec
from dtrain.runtime.sharding import Sharding

# Keys of DeepSpeed's config, and the keys of the recipe that decide the same.
KEYS = {
    "gradient_accumulation_steps": "accumulation",
    "gradient_clipping": "clip",
    "fp16.enabled": "precision",
    "bf16.enabled": "precision",
}


def fill_config(sharding: Sharding, spec: TrainSpec, ranks: int, precision: str) -> dict[str, Any]:
    """DeepSpeed's config with each "auto", and what was left out, filled from the recipe.

    Raises:
        InputError: a value of the config contradicts the recipe.
    """
    config = copy.deepcopy(sharding.deepspeed)
    passes = spec.accumulation * (2 if spec.adversarial else 1)  # backward passes; DeepSpeed accumulates over them
    values: dict[str, Any] = {
        # For DeepSpeed's own bookkeeping: the loop cuts batches, and gradients are sums over them.
        "train_micro_batch_size_per_gpu": max(1, (spec.batch_size or ranks) // (ranks * spec.accumulation)),
        "gradient_accumulation_steps": passes,
        "gradient_clipping": spec.clip or 0.0,
        "fp16.enabled": precision == "fp16",
        "bf16.enabled": precision == "bf16",
    }
    problems = []
    for key, value in values.items():
        *path, last = key.split(".")
        section = config
        for part in path:
            section = section.setdefault(part, {})
        found = section.get(last, "auto")
        if found not in ("auto", value) and key in KEYS:
            problems.append(
                f"{sharding.where}: {key}: {found!r}, but the recipe's {KEYS[key]} makes it {value!r}: "
                'say "auto" there'
            )
        section[last] = value
    if problems:
        raise InputError(problems)
    config.pop("train_batch_size", None)  # the product of the above
    config["zero_allow_untested_optimizer"] = True  # LAMB is exact or refuses, the others work element by element
    return config
