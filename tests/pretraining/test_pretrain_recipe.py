"""The section `pretrain` of a recipe: what is refused, what `pretrained: pretrain` means, and fingerprints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtrain.engines.optim import rate
from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe import dump_recipe, load_recipe
from dtrain.recipe.models import encoder_of
from dtrain.recipe.optimizers import ScheduleSpec
from dtrain.recipe.schema import Recipe

Load = Callable[..., Recipe]
TEACHER = {"name": "t", "model": {"type": "nezha", "pretrained": "pretrain"}}


def test_polynomial_decay_by_hand() -> None:
    """BERT's and LAMB's: (left / steps after warm-up) ^ power, towards the floor; power 1 is linear."""
    factor = rate(ScheduleSpec(type="polynomial", warmup=2, power=0.5, floor=0.1), 6, 1)
    assert [factor(step) for step in range(6)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.1 + 0.9 * 0.75**0.5, 0.1 + 0.9 * 0.5**0.5, 0.1 + 0.9 * 0.25**0.5]
    )
    linear, power_1 = (rate(ScheduleSpec(type=name, warmup=0.2), 50, 1) for name in ("linear", "polynomial"))
    assert [power_1(step) for step in range(50)] == pytest.approx([linear(step) for step in range(50)])


def test_a_written_recipe_loads_again_to_the_same(recipe_of: Load, text_files: Path) -> None:
    recipe = recipe_of(teachers=[TEACHER])
    written = text_files / "written.yaml"
    written.write_text(dump_recipe(recipe), encoding="utf-8")
    again = load_recipe(str(written))
    assert again == recipe
    plan, other = Plan(recipe), Plan(again)
    assert [plan.pretraining(n) for n in range(2)] == [other.pretraining(n) for n in range(2)]
    assert plan.model("teachers", "t") == other.model("teachers", "t")


def test_the_teacher_starts_from_the_last_phase_wherever_the_run_is(recipe_of: Load, text_files: Path) -> None:
    recipe = recipe_of(teachers=[TEACHER])
    encoder = encoder_of(recipe.teachers[0].model)
    assert encoder is not None and encoder.pretrained == "pretrain"
    assert encoder.source == str(text_files / "runs" / "run" / "pretrain" / "phase-2")
    moved = recipe_of(teachers=[TEACHER], output_dir=str(text_files / "elsewhere"), name="other")
    before = Plan(recipe).model("teachers", "t")
    assert Plan(moved).model("teachers", "t") == before  # names of folders change no result
    # Its bytes do.
    folder = Plan(recipe).folder.pretrained(1)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"1")
    first = Plan(recipe).model("teachers", "t")
    (folder / "model.safetensors").write_bytes(b"2")
    assert len({before, first, Plan(recipe).model("teachers", "t")}) == 3


def test_without_the_section_the_word_is_a_folders_name(text_files: Path) -> None:
    path = text_files / "plain.yaml"
    path.write_text(
        f"name: plain\ndata: {{train: {text_files}/rows.jsonl}}\n"
        "teachers: [{name: t, model: {type: nezha, pretrained: pretrain}}]\n"
    )
    encoder = encoder_of(load_recipe(str(path)).teachers[0].model)
    assert encoder is not None and encoder.source == "pretrain" and not encoder.made_here


def test_what_changes_which_fingerprint(recipe_of: Load, text_files: Path) -> None:
    def prints(**changes: Any) -> tuple[str, str, str]:
        plan = Plan(recipe_of(**changes))
        return plan.corpus, plan.pretraining(0), plan.pretraining(1)

    base = prints()
    phases = [{"max_length": 16}, {"max_length": 32, "epochs": 2}]
    assert [a == b for a, b in zip(base, prints(pretrain={"phases": phases}), strict=True)] == [True, True, False]
    often = [{"max_length": 16, "checkpoint_every": 5}, {"max_length": 32}]
    assert prints(pretrain={"phases": often}) == base
    masking = {"masking": {"ngram": 4}}
    assert [a == b for a, b in zip(base, prints(pretrain=masking), strict=True)] == [True, False, False]
    separate = {"separate": True}
    assert [a == b for a, b in zip(base, prints(corpus=separate), strict=True)] == [True, False, False]
    with (text_files / "valid.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "新", "label": "a"}\n')
    assert [a == b for a, b in zip(base, prints(), strict=True)] == [False, False, False]  # more is kept out
    changed = prints()
    with (text_files / "text.txt").open("a", encoding="utf-8") as file:
        file.write("新的一行。\n")
    assert [a == b for a, b in zip(changed, prints(), strict=True)] == [False, False, False]


@pytest.mark.parametrize(
    ("pretrain", "told"),
    [
        ({"masking": {"share": 1.5}}, "pretrain.masking.share: input should be less than 1, found 1.5"),
        (
            {"masking": {"ngrams": 2}},
            "pretrain.masking.ngrams: unknown key; did you mean 'ngram'? (allowed: share, ngram)",
        ),
        ({"phases": []}, "pretrain.phases: list should have at least 1 item"),
        ({"phases": [{"max_length": 4}]}, "pretrain.phases.0.max_length: input should be greater than or equal to 8"),
        ({"model": {"type": "bilstm"}}, "pretrain.model.type: allowed: 'bert', 'nezha', found 'bilstm'"),
        ({"model": {"type": "nezha", "pretrained": "pretrain"}}, "pretrain.model.pretrained: 'pretrain' is what this"),
    ],
)
def test_bad_sections_are_told_by_key(recipe_of: Load, pretrain: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        recipe_of(pretrain=pretrain)
    assert told in error.value.problems[0]


def test_a_stage_that_the_recipe_lacks(text_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dtrain.__main__ import main

    path = text_files / "plain.yaml"
    path.write_text(f"name: plain\ndata: {{train: {text_files}/rows.jsonl}}\n")
    for words in (["pretrain", str(path)], ["run", str(path), "--stages", "pretrain,prepare"]):
        assert main(words) == 2
        assert "dtrain: plain: the recipe has no section `pretrain`" in capsys.readouterr().err


def test_submitted_recipes_pre_train_first(recipe_of: Load, capfd: pytest.CaptureFixture[str]) -> None:
    from dtrain.submit import Cluster, submit

    cluster = Cluster(partition="", nodes=2, gpus=8, cpus=4, time="60", groups=1, requeues=1)
    assert submit(recipe_of(teachers=[TEACHER]), cluster, dry_run=True, local=False) == 0
    jobs = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [job[-2] for job in jobs][:3] == ["pretrain", "prepare", "finetune"]
    assert "--nodes=2" in jobs[0] and "--dependency=afterok:ID_OF_PRETRAIN" in jobs[1]
