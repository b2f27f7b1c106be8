"""The losses between layers beside TextBrewer's on the same tensors, with the factor between the two reductions.

    python -m venv /tmp/textbrewer && echo "$PWD/.venv/lib/python3.11/site-packages" > \
        /tmp/textbrewer/lib/python3.11/site-packages/dtrain.pth
    /tmp/textbrewer/bin/pip install --no-deps textbrewer==0.2.1.post1
    PYTHONPATH=. /tmp/textbrewer/bin/python tests/benchmarks/losses_beside_textbrewer.py

TextBrewer takes one mean over all unpadded tokens (or pairs) of a batch, dtrain the mean over rows of each row's own mean,
so that rows add up over ranks. For rows of one length the two are the same number; otherwise TextBrewer's is dtrain's with
row r weighted by n_r (tokens), or by n_r^2 (pairs). Prints both numbers and the largest difference of their gradients;
exit code 1 where they differ by more than 1e-12 in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from textbrewer import losses as theirs
from torch import Tensor

from dtrain.losses import relations, states
from dtrain.losses.outputs import logit_regression, soft_targets

B, N, H, HEADS = 6, 9, 8, 2
TOLERANCE = 1e-12


@dataclass
class Pair:
    """One formula in both packages.

    Attributes:
        ours: student's tensors and mask -> values a row [B].
        theirs: the same tensors -> a number.
        weight: of a row, a power of its number of tokens.
        factor: theirs is `factor` times ours, and `constant` more: no gradient flows through that.
    """

    ours: Callable[[Tensor, Tensor], Tensor]
    theirs: Callable[[Tensor, Tensor], Tensor]
    student: Tensor
    weight: int
    factor: float = 1.0
    constant: Callable[[Tensor], Tensor] = lambda mask: torch.zeros(())


def pairs(draw: torch.Generator) -> dict[str, Pair]:
    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    student, teacher, later, earlier = (drawn(B, N, H) for _ in range(4))
    scores, taught = drawn(B, HEADS, N, N), drawn(B, HEADS, N, N)
    logits, target = drawn(B, 5), drawn(B, 5)

    def masked(given: Tensor, mask: Tensor) -> Tensor:  # as BERT masks its scores; TextBrewer's softmax sees all keys
        return given.masked_fill(~mask[:, None, None, :], -1e4)

    def entropy(mask: Tensor) -> Tensor:
        """TextBrewer's is a cross-entropy: the divergence and the teacher's own entropy, heads summed as there."""
        shares = masked(taught, mask).softmax(-1)
        rows = -torch.xlogy(shares, shares).sum(-1).mean(1)
        return rows.masked_fill(~mask, 0.0).sum() / mask.sum()

    def softened_entropy(mask: Tensor) -> Tensor:
        shares = (target / 2).softmax(-1)
        return -(shares * shares.log()).sum(-1).mean()

    return {
        "hidden states, MSE (hid_mse)": Pair(
            lambda s, m: states.squared_difference(s, teacher, m),
            lambda s, m: theirs.hid_mse_loss(s, teacher, m),
            student,
            1,
        ),
        "hint, 1/2 sum over channels (hid_mse)": Pair(
            lambda s, m: states.hint(s, teacher, m),
            lambda s, m: theirs.hid_mse_loss(s, teacher, m),
            student,
            1,
            factor=2 / H,
        ),
        "hidden states, cosine (cos)": Pair(
            lambda s, m: states.angle(s, teacher, m), lambda s, m: theirs.cos_loss(s, teacher, m), student, 1
        ),
        "attention scores, MSE (attention_mse)": Pair(
            lambda s, m: relations.scores_difference(s, taught, m),
            lambda s, m: theirs.att_mse_loss(s, taught, m),
            scores,
            2,
        ),
        "attention, divergence (attention_ce)": Pair(
            lambda s, m: relations.attention_divergence(s, taught, m),
            lambda s, m: theirs.att_ce_loss(masked(s, m), masked(taught, m), m),
            scores,
            1,
            constant=entropy,
        ),
        "flow between layers (fsp)": Pair(
            lambda s, m: relations.flow_difference(s, later, teacher, earlier, m),
            lambda s, m: theirs.fsp_loss([s, later], [teacher, earlier], m),
            student,
            0,
        ),
        "logits, MSE (kd_mse)": Pair(
            lambda s, m: logit_regression(s, target),
            lambda s, m: theirs.kd_mse_loss(s, target),
            logits,
            0,
            factor=1 / 5,
        ),
        "soft targets, T = 2 (kd_ce)": Pair(
            lambda s, m: soft_targets(s, target, temperature=2.0),
            lambda s, m: theirs.kd_ce_loss(s, target, 2.0),
            logits,
            0,
            factor=1 / 4,
            constant=softened_entropy,
        ),
    }


def with_gradient(number: Tensor, student: Tensor) -> tuple[float, Tensor]:
    (gradient,) = torch.autograd.grad(number, student)
    return number.item(), gradient


def main() -> int:
    worst = 0.0
    for title, lengths in (("rows of one length", [N] * B), ("rows of 1 to 9 tokens", [1, 9, 4, 7, 2, 5])):
        mask = torch.arange(N)[None] < torch.tensor(lengths)[:, None]
        print(f"\n{title:<40} {'dtrain':>12} {'as theirs':>12} {'TextBrewer':>12} {'gradients':>10}")
        for name, pair in pairs(torch.Generator().manual_seed(0)).items():
            student = pair.student.requires_grad_()
            weights = torch.tensor(lengths, dtype=torch.float64) ** pair.weight
            values = pair.ours(student, mask)
            weighted = pair.factor * (weights * values).sum() / weights.sum() + pair.constant(mask)
            ours, gradient = with_gradient(weighted, student)
            other, their_gradient = with_gradient(pair.theirs(student, mask), student)
            apart = float((gradient - their_gradient).abs().max())
            worst = max(worst, abs(ours - other), apart)
            print(f"{name:<40} {values.mean().item():12.8f} {ours:12.8f} {other:12.8f} {apart:10.1e}")
    print(f"\nlargest difference {worst:.1e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
