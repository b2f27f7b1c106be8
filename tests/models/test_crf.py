"""The CRF against all paths written out in float64, and against pytorch-crf's own recursions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchcrf import CRF

from dtrain.models.crf import LEAST_LOG, LinearChainCRF

BIOES = ["O", "B-X", "I-X", "E-X", "S-X"]
LENGTHS = [4, 1, 3, 2]


def make(constrain: bool, seed: int = 0, scale: float = 1.0) -> LinearChainCRF:
    torch.manual_seed(seed)
    crf = LinearChainCRF(BIOES, constrain)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_().mul_(scale)
    return crf


def batch(scale: float = 1.0, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Emissions of texts of `LENGTHS`, noise at padding, and the mask."""
    generator = torch.Generator().manual_seed(7)
    emissions = scale * torch.randn(len(LENGTHS), max(LENGTHS), len(BIOES), generator=generator)
    emissions = torch.cat([emissions, 50 * torch.randn(len(LENGTHS), extra, len(BIOES))], dim=1)
    return emissions, torch.arange(emissions.shape[1]) < torch.tensor(LENGTHS)[:, None]


def valid(path: tuple[int, ...]) -> bool:
    """Whether the tags can be read from left to right as O, S, or B I* E."""
    inside = False
    for tag in path:
        if inside != (BIOES[tag][0] in "IE"):
            return False
        inside = BIOES[tag][0] in "BI"
    return not inside


def paths(crf: LinearChainCRF, emissions: Tensor) -> tuple[Tensor, Tensor]:
    """All paths through one text [n, T], int64 [P, n], and their scores in float64 [P]."""
    start, end, moves = (p.detach().double() for p in (crf.start_transitions, crf.end_transitions, crf.transitions))
    every = [p for p in itertools.product(range(len(BIOES)), repeat=len(emissions)) if not crf.constrain or valid(p)]
    scores = [
        start[path[0]]
        + sum(emissions[i, tag].double() for i, tag in enumerate(path))
        + sum(moves[a, b] for a, b in itertools.pairwise(path))
        + end[path[-1]]
        for path in every
    ]
    return torch.tensor(every), torch.stack(scores)


@pytest.mark.parametrize("constrain", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_equals_all_paths_written_out(constrain: bool, scale: float) -> None:
    crf = make(constrain, scale=min(scale, 5.0))
    emissions, mask = batch(scale)
    marginals, best = crf.log_marginals(emissions, mask), crf.best_path(emissions, mask)
    for row, length in enumerate(LENGTHS):
        every, scores = paths(crf, emissions[row, :length])
        for number in (0, len(every) // 2, len(every) - 1):
            tags = torch.full((len(LENGTHS), mask.shape[1]), -1)
            tags[row, :length] = every[number]
            nll = crf.nll(emissions, tags, mask)
            expected = torch.logsumexp(scores, 0) - scores[number]
            torch.testing.assert_close(nll[row].double(), expected, rtol=1e-5, atol=1e-4)
            assert nll[[r for r in range(len(LENGTHS)) if r != row]].eq(0).all()
        share = torch.softmax(scores, 0)
        by_tag = torch.stack([((every == tag) * share[:, None]).sum(0) for tag in range(len(BIOES))], dim=1)
        torch.testing.assert_close(marginals[row, :length].double().exp(), by_tag, rtol=1e-4, atol=1e-6)
        assert best[row, :length].tolist() == every[scores.argmax()].tolist()
        assert best[row, length:].eq(-1).all()


def test_all_paths_together_have_probability_one() -> None:
    crf = make(constrain=True)
    emissions = torch.randn(1, 4, len(BIOES))
    every, _ = paths(crf, emissions[0])
    nll = crf.nll(emissions.expand(len(every), -1, -1), every, torch.ones(len(every), 4, dtype=torch.bool))
    torch.testing.assert_close(nll.neg().exp().sum(), torch.tensor(1.0))


def test_equals_pytorch_crf() -> None:
    torch.manual_seed(1)
    crf, reference = LinearChainCRF(["O"] * 12), CRF(12, batch_first=True)
    reference.load_state_dict(crf.state_dict())
    lengths = torch.tensor([20, 1, 7, 13, 2])
    mask = torch.arange(20) < lengths[:, None]
    tags = torch.randint(0, 12, mask.shape)
    ours, theirs = (torch.randn(5, 20, 12, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in "ab")
    weights = torch.rand(5)
    nll = crf.nll(ours, tags.masked_fill(~mask, -1), mask)
    expected = -reference(theirs, tags, mask, reduction="none")
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-4)
    (weights * nll).sum().backward()
    (weights * expected).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    for name, parameter in crf.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, rtol=1e-4, atol=1e-5)
    found = [row[row >= 0].tolist() for row in crf.best_path(ours, mask)]
    assert found == reference.decode(theirs, mask)


@pytest.mark.parametrize("constrain", [False, True])
def test_padding_changes_nothing(constrain: bool) -> None:
    crf = make(constrain)
    tags = torch.tensor([[0, 1, 2, 3], [4, -1, -1, -1], [1, 3, 0, -1], [0, 0, -1, -1]])
    results = []
    for extra in (0, 5):
        emissions, mask = batch(extra=extra)
        emissions.requires_grad_()
        crf.zero_grad()
        nll = crf.nll(emissions, torch.nn.functional.pad(tags, (0, extra), value=-1), mask)
        marginals = crf.log_marginals(emissions, mask)
        (nll.sum() + marginals[mask].exp().square().sum()).backward()
        assert emissions.grad is not None and emissions.grad[~mask].eq(0).all()
        gradients = [p.grad.clone() for p in crf.parameters() if p.grad is not None]
        results.append((nll, marginals[mask], crf.best_path(emissions, mask)[mask], emissions.grad[mask], *gradients))
    assert len(results[0]) == 7
    for tight, loose in zip(*results, strict=True):
        torch.testing.assert_close(loose, tight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("constrain", [False, True])
def test_gradients(constrain: bool) -> None:
    crf = make(constrain).double()
    emissions, mask = batch()
    tags = torch.tensor([[0, 1, 2, 3], [4, -1, -1, -1], [1, 3, 0, -1], [-1, -1, -1, -1]])
    names = [name for name, _ in crf.named_parameters()]

    def of(function: str) -> Callable[..., Tensor]:
        def call(emissions: Tensor, *parameters: Tensor) -> Tensor:
            for name, parameter in zip(names, parameters, strict=True):
                delattr(crf, name)
                setattr(crf, name, parameter)
            assert emissions.dtype == torch.float64
            if function == "nll":
                return crf.nll(emissions, tags, mask)
            return crf.log_marginals(emissions, mask)[mask].exp()

        return call

    inputs = [emissions.double().requires_grad_(), *(p.detach().clone().requires_grad_() for p in crf.parameters())]
    for function in ("nll", "log_marginals"):
        assert torch.autograd.gradcheck(of(function), inputs)


@pytest.mark.parametrize("constrain", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_finite_under_autocast_with_large_logits(constrain: bool, dtype: torch.dtype) -> None:
    crf = make(constrain)
    torch.manual_seed(3)
    emissions = (1e4 * (2 * torch.rand(3, 40, len(BIOES)) - 1)).to(dtype)
    emissions[0] = torch.tensor([1e4, -1e4, 1e4, -1e4, -1e4])  # the best characters are an invalid path
    emissions.requires_grad_()
    mask = torch.arange(40) < torch.tensor([40, 25, 1])[:, None]
    tags = torch.zeros(mask.shape, dtype=torch.int64).masked_fill(~mask, -1)
    with torch.autocast("cpu", dtype):
        nll, marginals = crf.nll(emissions, tags, mask), crf.log_marginals(emissions, mask)
        best = crf.best_path(emissions, mask)
        (nll.sum() + marginals[mask].sum()).backward()
    assert nll.dtype == marginals.dtype == torch.float32
    assert nll.isfinite().all() and marginals.isfinite().all()
    torch.testing.assert_close(nll.double(), crf.nll(emissions.double(), tags, mask), rtol=1e-6, atol=1e-3)
    assert marginals.min() >= LEAST_LOG and marginals.half().isfinite().all()
    torch.testing.assert_close(marginals[mask].exp().sum(-1), torch.ones(int(mask.sum())))
    assert emissions.grad is not None and emissions.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in crf.parameters())
    for row in best:
        assert not constrain or valid(tuple(row[row >= 0].tolist()))


def test_constraint_is_in_use_and_not_in_the_parameters() -> None:
    free, bound = make(constrain=False), make(constrain=True)
    assert free.state_dict().keys() == bound.state_dict().keys()
    for name, value in free.state_dict().items():
        assert torch.equal(bound.state_dict()[name], value)
    emissions, mask = batch()
    bound.nll(emissions, torch.zeros(4, 4, dtype=torch.int64).masked_fill(~mask, -1), mask).sum().backward()
    gradient = bound.transitions.grad
    assert gradient is not None
    for a, b in itertools.product(range(5), repeat=2):
        follows = valid((1,) * (BIOES[a][0] in "IE") + (a, b) + (3,) * (BIOES[b][0] in "BI"))
        assert (gradient[a, b] != 0) == follows, (BIOES[a], BIOES[b])


def test_entities_of_two_types_do_not_mix() -> None:
    tags = ["O", *(f"{part}-{kind}" for kind in ("X", "Y") for part in "BIES")]
    crf = LinearChainCRF(tags, constrain=True)
    emissions = torch.zeros(1, 3, len(tags))
    emissions[0, 0, tags.index("B-X")] = emissions[0, 1, tags.index("I-Y")] = emissions[0, 2, tags.index("E-Y")] = 5.0
    found = [tags[tag] for tag in crf.best_path(emissions, torch.ones(1, 3, dtype=torch.bool))[0]]
    assert found == ["B-Y", "I-Y", "E-Y"]  # one character below the path that is best without the constraint
