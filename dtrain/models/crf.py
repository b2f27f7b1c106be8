"""A linear-chain CRF (Lafferty et al. 2001) over emissions: likelihood, posterior marginals, best path.

Parameters and their initial values are pytorch-crf's. Its recursions are not used: they decode token by token on
the host, give no marginals, and train at half the speed; the tests use them as the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchcrf import CRF

# The score of an impossible start, end or transition. It is finite, so that sums and differences are not NaN, and
# larger in size than the sum of emissions of 1e4 over any text, so that no such path is ever the best.
IMPOSSIBLE = -1e30
# The lowest log marginal: its exponential is 0 in every dtype, and float16 can still represent it.
LEAST_LOG = -1e4


class LinearChainCRF(CRF):
    """p(tags | x) ∝ exp(start[t_1] + Σ_i emissions[i, t_i] + Σ_i transitions[t_i, t_i+1] + end[t_n]).

    All methods compute in float32 (float64 if the emissions are) with autocast off, and take

        emissions: [B, N, T], any float dtype.
        mask: bool [B, N], True for characters and False for padding, which is on the right; True at position 0.

    Args:
        tags: their names; T of them.
        constrain: whether paths that are no valid BIOES sequences (of O, B I* E, and S) are impossible. The stored
            parameters are the same: the constraint is applied when they are used.
    """

    forbidden_transitions: Tensor
    forbidden_start: Tensor
    forbidden_end: Tensor

    def __init__(self, tags: Sequence[str], constrain: bool = False) -> None:
        super().__init__(len(tags), batch_first=True)
        self.constrain = constrain
        if constrain:
            within = torch.tensor([[_follows(tag, after) for after in tags] for tag in tags])
            self.register_buffer("forbidden_transitions", ~within, persistent=False)
            self.register_buffer("forbidden_start", ~torch.tensor([_starts(tag) for tag in tags]), persistent=False)
            self.register_buffer("forbidden_end", ~torch.tensor([_ends(tag) for tag in tags]), persistent=False)

    def forward(
        self, emissions: Tensor, mask: Tensor, tags: Tensor | None, marginals: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """`nll` where tags are given, and `log_marginals` where `marginals` is set; else None for each.

        Models call this and not the two methods: engines that shard parameters gather them when a module is called.
        """
        return (
            None if tags is None else self.nll(emissions, tags, mask),
            self.log_marginals(emissions, mask) if marginals else None,
        )

    def nll(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """-log p(tags | x), [B]; `tags` int64 [B, N], -1 at padding; 0 for a row whose tags are all -1."""
        with torch.autocast(emissions.device.type, enabled=False):
            emissions, start, end, transitions = self._exact(emissions)
            scores = _recursion(emissions[None], mask, start[None], transitions.T[None])[0]
            log_z = torch.logsumexp(scores[:, -1] + end, dim=-1)

            known = tags.clamp(min=0)
            steps = emissions.gather(2, known[:, :, None])[:, :, 0].masked_fill(~mask, 0.0)
            moves = transitions[known[:, :-1], known[:, 1:]].masked_fill(~mask[:, 1:], 0.0)
            last = known.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
            score = start[known[:, 0]] + steps.sum(1) + moves.sum(1) + end[last]
            return (log_z - score).masked_fill((tags < 0).all(1), 0.0)

    def log_marginals(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """log p(t_i = t | x), [B, N, T], by forward-backward; differentiable; meaningless at padding.

        Values are at least `LEAST_LOG`.
        """
        with torch.autocast(emissions.device.type, enabled=False):
            emissions, start, end, transitions = self._exact(emissions)
            # The backward recursion is the forward one on the reversed text, so that both take the same steps.
            back = _reversal(mask)[:, :, None].expand_as(emissions)
            forward, backward = _recursion(
                torch.stack([emissions, emissions.gather(1, back)]),
                mask,
                torch.stack([start, end]),
                torch.stack([transitions.T, transitions]),
            )
            # Both include the emission of their own position, so it is subtracted once. By log_softmax tags sum to 1.
            joint = forward + backward.gather(1, back) - emissions
            return torch.log_softmax(joint, dim=-1).clamp(min=LEAST_LOG)

    @torch.no_grad()
    def best_path(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """The most probable tags by Viterbi, int64 [B, N], -1 at padding; without synchronising with the host."""
        with torch.autocast(emissions.device.type, enabled=False):
            emissions, start, end, transitions = self._exact(emissions)
            into = transitions.T.contiguous()
            score = start + emissions[:, 0]
            stay = torch.arange(self.num_tags, device=emissions.device)
            origins = []
            for position in range(1, emissions.shape[1]):
                best, origin = (score[:, None, :] + into).max(dim=-1)
                here = mask[:, position, None]
                score = torch.where(here, best + emissions[:, position], score)
                origins.append(torch.where(here, origin, stay))
            tag = (score + end).argmax(dim=-1, keepdim=True)
            path = [tag]
            for origin in reversed(origins):
                tag = origin.gather(1, tag)
                path.append(tag)
            return torch.cat(path[::-1], dim=1).masked_fill(~mask, -1)

    @torch.no_grad()
    def scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """The scores that decoding adds to emissions, float32: start [T], end [T], transitions [T (from), T (to)]."""
        return self._exact(self.start_transitions.new_zeros(1, 1, self.num_tags))[1:]

    def _exact(self, emissions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Emissions (shifted, see below), start, end and transitions in the dtype of the sums, constraint included."""
        dtype = torch.float64 if emissions.dtype == torch.float64 else torch.float32
        emissions = emissions.to(dtype)
        # A constant for each position changes no result; it keeps the sums small, and so their rounding errors.
        emissions = emissions - emissions.detach().amax(-1, keepdim=True)
        start, end, transitions = (
            parameter.to(dtype) for parameter in (self.start_transitions, self.end_transitions, self.transitions)
        )
        if self.constrain:
            start = start.masked_fill(self.forbidden_start, IMPOSSIBLE)
            end = end.masked_fill(self.forbidden_end, IMPOSSIBLE)
            transitions = transitions.masked_fill(self.forbidden_transitions, IMPOSSIBLE)
        return emissions, start, end, transitions


def _starts(tag: str) -> bool:
    return tag[0] in "OBS"


def _ends(tag: str) -> bool:
    return tag[0] in "OES"


def _follows(tag: str, after: str) -> bool:
    """Whether a valid BIOES sequence may have `after` right after `tag`."""
    if _ends(tag):
        return _starts(after)
    return after[0] in "IE" and after[2:] == tag[2:]


def _reversal(mask: Tensor) -> Tensor:
    """The permutation that reverses each row's characters and leaves its padding in place, int64 [B, N]."""
    position = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, mask.sum(1, keepdim=True) - 1 - position, position)


def _recursion(emissions: Tensor, mask: Tensor, start: Tensor, into: Tensor) -> Tensor:
    """D chains at once: [D, B, N, T], [B, N], [D, T], [D, T (to), T (from)] -> scores [D, B, N, T].

    scores[i, t] = emissions[i, t] + log Σ_s exp(scores[i-1, s] + into[t, s]); at padding, the scores of the last
    character.
    """
    time_first = emissions.permute(2, 0, 1, 3)
    first = start[:, None] + time_first[0]
    scores: Tensor = _Recursion.apply(first, time_first[1:], into[:, None], mask.T[:, None, :, None])
    return scores.permute(1, 2, 0, 3)


class _Recursion(torch.autograd.Function):
    """The recursion with a hand-written gradient.

    The gradient of a step needs the share of each previous score in each sum, which the forward pass computes anyway:
    autograd would compute it a second time, and keep a graph of several operations for each position.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, emissions: Tensor, into: Tensor, mask: Tensor) -> Tensor:
        """[D, B, T], [N-1, D, B, T], [D, 1, T, T], bool [N, 1, B, 1] -> [N, D, B, T]."""
        steps = len(emissions)
        scores = first.new_empty(steps + 1, *first.shape)
        scores[0] = first
        kept = steps if any(ctx.needs_input_grad) else min(steps, 1)
        parts = first.new_empty(kept, *first.shape, first.shape[-1])
        totals = first.new_empty(kept, *first.shape)
        for step in range(steps):
            part, total = parts[step % kept], totals[step % kept]
            torch.add(scores[step].unsqueeze(-2), into, out=part)
            most = part.amax(-1, keepdim=True)
            torch.sum(part.sub_(most).exp_(), -1, out=total)
            reached = total.log().add_(most.squeeze(-1)).add_(emissions[step])
            torch.where(mask[step + 1], reached, scores[step], out=scores[step + 1])
        ctx.save_for_backward(parts, totals, mask)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        parts, totals, mask = ctx.saved_tensors
        steps = len(gradient) - 1
        carried = gradient[steps]
        reached = torch.empty_like(gradient[1:])  # the gradient of each new score
        for step in range(steps - 1, -1, -1):
            here = mask[step + 1]
            torch.mul(carried, here, out=reached[step])
            sent = ((reached[step] / totals[step]).unsqueeze(-2) @ parts[step]).squeeze(-2)
            carried = gradient[step] + sent + carried.masked_fill(here, 0.0)
        into = torch.einsum("ndbj,ndbji->dji", reached / totals, parts) if steps else parts.new_zeros(())
        shape = (gradient.shape[1], gradient.shape[-1], gradient.shape[-1])
        return carried, reached, into.expand(shape).unsqueeze(1), None
