"""The weighted sum of a student's terms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dtrain.losses.objective import LossSum, build_losses
from dtrain.losses.outputs import cross_entropy, logit_regression, soft_targets
from dtrain.recipe.training import LossSpec


def call(
    losses: LossSum, student: torch.Tensor, labels: torch.Tensor, teachers: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    given = {"logits": student, "labels": labels.clamp(min=0)}
    return losses(given, {name: {"logits": logits} for name, logits in teachers.items()}, labels >= 0)


def specs(*sections: dict[str, Any]) -> list[LossSpec]:
    return [LossSpec.model_validate(section) for section in sections]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, 3, generator=generator, requires_grad=True)
    teachers = {name: torch.randn(6, 3, generator=generator) for name in ("a", "b")}
    return student, torch.tensor([0, -1, 2, 1, -1, 2]), teachers


def test_sums_and_counts(batch: tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    student, labels, teachers = batch
    losses = build_losses(
        specs(
            {"type": "cross_entropy", "weight": 0.25, "label_smoothing": 0.1},
            {"type": "soft_targets", "weight": 2.0, "temperature": "4"},
            {"type": "soft_targets", "weight": 0.5, "teachers": ["b"]},
            {"type": "logit_regression", "teachers": ["a"]},
        )
    )
    total, sums, counts = call(losses, student, labels, teachers)
    hard = labels >= 0
    expected = {
        "cross_entropy": cross_entropy(student[hard], labels[hard], label_smoothing=0.1).sum(),
        "soft_targets": soft_targets(student, torch.stack([*teachers.values()]), temperature=4.0).sum(),
        "soft_targets.2": soft_targets(student, teachers["b"], temperature=2.0).sum(),
        "logit_regression": logit_regression(student, teachers["a"]).sum(),
    }
    assert losses.names == list(sums) == list(counts) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(sums[name], value.detach())
        assert not sums[name].requires_grad
    assert {name: int(count) for name, count in counts.items()} == {
        "cross_entropy": 4, "soft_targets": 6, "soft_targets.2": 6, "logit_regression": 6,
    }  # fmt: skip
    weighted = sum(w * v for w, v in zip([0.25, 2.0, 0.5, 1.0], expected.values(), strict=True))
    torch.testing.assert_close(total, weighted)
    (gradient,) = torch.autograd.grad(total, student, retain_graph=True)
    (reference,) = torch.autograd.grad(weighted, student)
    torch.testing.assert_close(gradient, reference)


def test_any_cut_of_a_batch_adds_up(
    batch: tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]],
) -> None:
    student, labels, teachers = batch
    losses = build_losses(specs({"type": "cross_entropy", "weight": 0.5}, {"type": "soft_targets"}))
    whole, *_ = call(losses, student, labels, teachers)
    for cut in (0, 1, 4):  # the first part may be empty, or hold no labelled row
        parts = [
            call(losses, student[rows], labels[rows], {name: z[rows] for name, z in teachers.items()})[0]
            for rows in (slice(None, cut), slice(cut, None))
        ]
        torch.testing.assert_close(sum(parts), whole)


def test_rows_without_label_have_no_hard_term() -> None:
    student = torch.randn(3, 4, requires_grad=True)
    losses = build_losses(specs({"type": "cross_entropy"}))
    total, sums, counts = call(losses, student, torch.full((3,), -1), {})
    total.backward()
    assert total.item() == sums["cross_entropy"].item() == counts["cross_entropy"].item() == 0
    assert student.grad is not None and not student.grad.any()


def test_weight_zero_only_watches() -> None:
    student = torch.zeros(1, 2, requires_grad=True)
    losses = build_losses(specs({"type": "cross_entropy"}, {"type": "logit_regression", "weight": 0.0}))
    total, sums, _ = call(losses, student, torch.tensor([0]), {"t": torch.tensor([[torch.inf, 0.0]])})
    assert total.isfinite() and sums["logit_regression"].isinf()


def test_half_precision_gives_float32_sums() -> None:
    losses = build_losses(specs({"type": "cross_entropy"}, {"type": "logit_regression"}))
    student = torch.randn(2, 3).half()
    total, sums, _ = call(losses, student, torch.tensor([0, 1]), {"t": torch.randn(2, 3).half()})
    assert total.dtype == torch.float32 and all(value.dtype == torch.float32 for value in sums.values())


def test_missing_teachers_are_named() -> None:
    student, labels = torch.zeros(1, 2), torch.tensor([0])
    losses = build_losses(specs({"type": "soft_targets", "teachers": ["a", "b"]}))
    with pytest.raises(KeyError, match=r"soft_targets: no logits of teacher 'b' \(given: a\)"):
        call(losses, student, labels, {"a": student})
    with pytest.raises(KeyError, match="needs the logits of a teacher"):
        call(build_losses(specs({"type": "soft_targets"})), student, labels, {})


def test_no_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="none given"):
        build_losses([])


def test_characters_are_counted_where_rows_have_many() -> None:
    losses = build_losses(specs({"type": "tag_likelihood"}, {"type": "emission_regression", "weight": 0.5}))
    emissions = torch.randn(2, 3, 4)
    inputs = {
        "nll": torch.tensor([5.0, 7.0]),
        "emissions": emissions,
        "mask": torch.tensor([[1, 1, 1], [1, 0, 0]]).bool(),
    }
    teachers = {"t": {"emissions": emissions}}
    total, sums, counts = losses(inputs, teachers, torch.tensor([True, False]), torch.tensor([3, 1]))
    assert total == sums["tag_likelihood"] == 5.0
    assert counts == {"tag_likelihood": 3, "emission_regression": 4}


def test_what_is_read_of_teachers() -> None:
    losses = build_losses(
        specs(
            {"type": "tag_likelihood"},
            {"type": "marginal_matching", "teachers": ["a"]},
            {"type": "marginal_matching", "teachers": ["b"]},
            {"type": "emission_regression"},
        )
    )
    assert losses.teacher_outputs == {"marginals": {"a", "b"}, "emissions": None}
    assert losses.need("marginals") and not losses.need("labels")


@pytest.mark.parametrize(
    ("section", "weights"),
    [
        ({"start": 1, "end": 0, "until": 0.5}, {0: 1.0, 0.25: 0.5, 0.5: 0.0, 0.9: 0.0}),
        ({"start": 0.2, "end": 1}, {0: 0.2, 0.5: 0.6, 0.75: 0.8}),
        ({"start": 1, "end": 0, "shape": "cosine"}, {0: 1.0, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25}),
        # distillation that stops early (Cho and Hariharan, ICCV 2019)
        ({"start": 0.7, "shape": "step", "until": 0.4}, {0: 0.7, 0.39: 0.7, 0.4: 0.0, 0.9: 0.0}),
    ],
)
def test_a_weight_follows_its_schedule(
    batch: tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]],
    section: dict[str, Any],
    weights: dict[float, float],
) -> None:
    student, labels, teachers = batch
    losses = build_losses(specs({"type": "cross_entropy", "weight": 2}, {"type": "soft_targets", "weight": section}))
    given = {"logits": student, "labels": labels.clamp(min=0)}
    stored = {name: {"logits": logits} for name, logits in teachers.items()}
    for progress, weight in weights.items():
        total, sums, _ = losses(given, stored, labels >= 0, progress=progress)
        torch.testing.assert_close(total, 2 * sums["cross_entropy"] + weight * sums["soft_targets"])
