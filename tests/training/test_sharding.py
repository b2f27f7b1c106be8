"""The sharding of a launch: read from its variables, completed from the recipe, and refused if the result could not be
exact.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from dtrain.engines.choose import check_engine
from dtrain.engines.zero_config import fill_config
from dtrain.errors import InputError
from dtrain.recipe.training import TrainSpec
from dtrain.runtime.sharding import Sharding, configs_folder, read_deepspeed, read_sharding, take_variables

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds_configs/zero2.json"}


def test_accelerate_does_not_see_what_dtrain_does_itself() -> None:
    environment = {**FSDP, **ZERO, "WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "bf16"}
    taken = take_variables(environment)
    assert taken == {**FSDP, **ZERO}
    assert "ACCELERATE_USE_DEEPSPEED" not in environment
    assert "ACCELERATE_USE_FSDP" not in environment
    assert environment["WORLD_SIZE"] == "2"


def test_nothing_asked_for_is_ddp() -> None:
    assert read_sharding({}) == Sharding("ddp")


def test_fsdp_is_read() -> None:
    assert read_sharding(FSDP).kind == "fsdp2"
    assert read_sharding(FSDP).reshard
    assert not read_sharding({**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}).reshard


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version: 1 .allowed: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "set activation_checkpointing: true"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "hybrid_shard"}, "fsdp_reshard_after_forward: hybrid_shard"),
    ],
)
def test_what_fsdp_does_not_do_here_is_refused(change: dict[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_sharding({**FSDP, **change})


def test_single_deepspeed_keys_are_refused() -> None:
    with pytest.raises(InputError, match="deepspeed_config_file: ds_configs/zero2.json"):
        read_sharding({"ACCELERATE_USE_DEEPSPEED": "true"})


@pytest.mark.parametrize(
    "path", sorted(configs_folder("accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_ways_are_read(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if config["distributed_type"] == "DEEPSPEED":
        named = config["deepspeed_config"]["deepspeed_config_file"]
        found = read_deepspeed(named)
        assert found.deepspeed["zero_optimization"]["stage"] == int(path.stem[4])
        assert found.deepspeed["gradient_clipping"] == "auto"
    elif config["distributed_type"] == "FSDP":
        assert config["fsdp_config"]["fsdp_version"] == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "ds.json:1: not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "zero_optimization.stage: None .allowed: 1, 2, 3"),
        ('{"zero_optimization": {"stage": 0}}', "zero_optimization.stage: 0"),
        ('{"zero_optimization": {"stage": 1}, "optimizer": {"type": "Lamb"}}', "trust ratio would be that of a flat"),
        ('{"zero_optimization": {"stage": 1}, "optimizer": {"type": "AdamW"}}', "the recipe's optimizer is used"),
        ('{"zero_optimization": {"stage": 1}, "scheduler": {"type": "WarmupLR"}}', "the recipe's schedule is used"),
        ('{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}', "must be false"),
        ('{"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}', "offload_optimizer: 'cpu' .must be a JSON"),
        ('{"zero_optimization": {"stage": 2}, "fp16": true}', "fp16: True .must be a JSON object"),
        ('{"zero_optimization": {"stage": 2}, "bf16": null}', "bf16: None .must be a JSON object"),
    ],
)
def test_a_config_that_cannot_be_exact_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "ds.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_deepspeed(str(tmp_path / "ds.json"))


def test_an_unknown_config_names_those_there_are() -> None:
    with pytest.raises(InputError, match="zero9.json: no such file .shipped in ds_configs/: .*zero3_offload"):
        read_deepspeed("ds_configs/zero9.json")


def spec(**changes: Any) -> TrainSpec:
    values = {"name": "t", "model": {"type": "bert"}, "batch_size": 32, "accumulation": 2, "clip": 0.5}
    return TrainSpec.model_validate({**values, **changes})


def test_auto_is_filled_from_the_recipe() -> None:
    config = fill_config(read_deepspeed("zero3.json"), spec(), 4, "bf16")
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"]["enabled"] is True
    assert config["fp16"]["enabled"] is False
    assert "auto" not in json.dumps(config)
    assert fill_config(read_deepspeed("zero3.json"), spec(clip=None), 4, "fp16")["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"gradient_clipping": 1.0}, "gradient_clipping: 1.0, but the recipe's clip makes it 0.5"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: 4, but the recipe's accumulation"),
        ({"fp16": {"enabled": True}}, "fp16.enabled: True, but the recipe's precision"),
    ],
)
def test_what_the_recipe_says_otherwise_is_refused(section: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        fill_config(
            Sharding("zero", "ds.json", deepspeed={"zero_optimization": {"stage": 1}, **section}), spec(), 2, "bf16"
        )


def test_the_loss_scale_of_zero_is_continued_as_it_was() -> None:
    """With `hysteresis` of 2, DeepSpeed's default, the first overflow leaves the scale; a restart must not forget it."""
    from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler

    from dtrain.engines.zero_internals import load_scaler_state, scaler_state

    def engine(static: float = 0.0) -> Any:
        options = {"init_scale": 65536.0, "scale_window": 4, "min_scale": 1.0, "delayed_shift": 2}
        scaler = CreateLossScaler(torch.half, static, not static, {**options, "consecutive_hysteresis": False})
        return SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler))

    first, second = engine(), engine()
    scaler = first.optimizer.loss_scaler
    scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis, scaler.cur_scale = 9, 6, 1, 1024.0
    state = scaler_state(first)
    load_scaler_state(second, state)
    again = second.optimizer.loss_scaler
    assert scaler_state(second) == state
    assert (again.cur_scale, again.cur_hysteresis) == (1024.0, 1)
    for _ in range(5):
        scaler.update_scale(False)
        again.update_scale(False)
        assert again.cur_scale == scaler.cur_scale
    assert again.cur_scale == 2048.0
    load_scaler_state(second, {"scale": 8.0, "good_steps": 0.0})  # from DDP or FSDP2
    assert again.cur_scale == 8.0
    fixed = engine(static=128.0)
    assert scaler_state(fixed) == {}
    load_scaler_state(fixed, state)
    assert fixed.optimizer.loss_scaler.cur_scale == 128.0


@pytest.mark.parametrize("name", sorted(path.stem for path in configs_folder("ds_configs").glob("*.json")))
def test_pgd_is_refused_under_zero(name: str) -> None:
    world: Any = SimpleNamespace(size=2, device=torch.device("cpu"), sharding=read_deepspeed(name + ".json"))
    with pytest.raises(InputError, match=r"teachers\.t\.adversarial\.type: pgd .*\(use fsdp2 or ddp\)"):
        check_engine(world, spec(adversarial={"type": "pgd"}))
    check_engine(world, spec(adversarial={"type": "fgm"}))
    world.size = 1  # nothing is sharded
    check_engine(world, spec(adversarial={"type": "pgd"}))
