"""LAMB in one process, compared with the paper's algorithm in float64, with timm, and between its own code paths."""

import copy
import io
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dtrain.engines.lamb import STREAMED, Lamb, _cpu_norm
from dtrain.engines.shard_layout import Layout, Part, ShardingError

SHAPES = [(7, 5), (3, 11, 2), (13,), (1,), ()]


def reference_step(
    w: Tensor,
    g: Tensor,
    state: dict,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    adapt: bool,
    limit: float | None,
    bias_correction: bool,
) -> float:
    """Algorithm 2 of arXiv:1904.00962, line by line, in float64; returns the trust ratio."""
    state["t"] = state.get("t", 0) + 1
    state["m"] = betas[0] * state.get("m", torch.zeros_like(w)) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", torch.zeros_like(w)) + (1 - betas[1]) * g**2
    m_hat, v_hat = state["m"], state["v"]
    if bias_correction:
        m_hat = m_hat / (1 - betas[0] ** state["t"])
        v_hat = v_hat / (1 - betas[1] ** state["t"])
    r = m_hat / (v_hat.sqrt() + eps) + weight_decay * w
    ratio = 1.0
    w_norm, r_norm = w.norm().item(), r.norm().item()
    if adapt and w_norm > 0 and r_norm > 0:
        ratio = w_norm / r_norm if limit is None else min(w_norm / r_norm, limit)
    w -= lr * ratio * r
    return ratio


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    gen = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=gen).to(dtype)) for shape in SHAPES]


def gradients(params: list[nn.Parameter], step: int) -> None:
    """Gradients that depend on the weights and the step, so that an early error grows."""
    gen = torch.Generator().manual_seed(1000 + step)
    for p in params:
        noise = torch.randn(p.shape, generator=gen)
        p.grad = (0.3 * p.detach().double() + noise.double()).to(p.dtype)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize(
    ("options", "adapted"),
    [
        ({}, [True, True, False, False, False]),
        ({"adapt_1d": True}, [True] * 5),
        ({"weight_decay": 0.0}, [False] * 5),
        ({"weight_decay": 0.0, "adapt_1d": True}, [True] * 5),
        ({"weight_decay": 0.0, "adapt": True}, [True] * 5),
        ({"adapt": False}, [False] * 5),
        ({"max_trust_ratio": 0.5}, [True, True, False, False, False]),
        ({"max_trust_ratio": None, "adapt_1d": True}, [True] * 5),
    ],
)
def test_follows_the_paper_in_float64(options, adapted, bias_correction, foreach):
    params = parameters(torch.float64)
    expected = [p.detach().clone() for p in params]
    group = {"params": params, **options}
    adapt_1d = group.pop("adapt_1d", False)
    optimizer = Lamb([group], lr=0.02, adapt_1d=adapt_1d, bias_correction=bias_correction, foreach=foreach)
    states: list[dict] = [{} for _ in params]
    for step in range(50):
        gradients(params, step)
        ratios = []
        for w, p, state, adapt in zip(expected, params, states, adapted, strict=True):
            ratio = reference_step(
                w,
                p.grad,
                state,
                lr=0.02,
                betas=(0.9, 0.999),
                eps=1e-6,
                weight_decay=options.get("weight_decay", 0.01),
                adapt=adapt,
                limit=options.get("max_trust_ratio", 10.0),
                bias_correction=bias_correction,
            )
            ratios += [ratio] if adapt else []
        optimizer.step()
        if ratios:
            torch.testing.assert_close(optimizer.trust_ratios()["values"], torch.tensor(ratios, dtype=torch.float64))
        else:
            assert optimizer.trust_ratios() == {}
    for w, p in zip(expected, params, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-11, atol=1e-12)


def test_one_step_worked_out_by_hand():
    # w = (3, 4): norm 5. First step with bias correction: m̂ = g, v̂ = g², so r = sign(g) = (1, -1): norm √2.
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    w.grad = torch.tensor([[2.0, -0.5]])
    optimizer = Lamb([{"params": [w], "adapt": True}], lr=0.1, eps=0.0, weight_decay=0.0)
    optimizer.step()
    ratio = 5 / math.sqrt(2)
    torch.testing.assert_close(w.detach(), torch.tensor([[3 - 0.1 * ratio, 4 + 0.1 * ratio]]))
    stats = optimizer.trust_ratios()
    assert [stats[k].item() for k in ("min", "median", "max")] == pytest.approx([ratio] * 3)


def test_ratio_is_one_where_a_norm_is_zero():
    zero_weight, zero_update = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zero_weight.grad, zero_update.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer = Lamb([{"params": [zero_weight, zero_update], "adapt": True}], lr=0.1, weight_decay=0.0)
    optimizer.step()
    assert optimizer.trust_ratios()["values"].tolist() == [1.0, 1.0]
    torch.testing.assert_close(zero_weight.detach(), torch.full((2, 2), -0.1), rtol=1e-5, atol=0)
    assert torch.equal(zero_update.detach(), torch.ones(2, 2))


# For each case in make_timm_golden.py, the options that correspond to timm's; those of `vectors` are for the 1-D
# parameters.
ADAPTED = {"lr": 0.01, "weight_decay": 0.02, "adapt_1d": True, "max_trust_ratio": None}
TIMM: dict[str, dict] = {
    "all adapted": ADAPTED,
    "no bias correction": {**ADAPTED, "bias_correction": False},
    "adapted without decay": {**ADAPTED, "weight_decay": 0.0},
    "none adapted": {"lr": 0.01, "weight_decay": 0.0},
    "ratio at most 1": {**ADAPTED, "lr": 0.02, "max_trust_ratio": 1.0},
    "other betas and eps": {**ADAPTED, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-2},
    "vectors without decay": {
        "lr": 0.01,
        "weight_decay": 0.02,
        "max_trust_ratio": None,
        "vectors": {"weight_decay": 0.0},
    },
    "two rates": {**ADAPTED, "vectors": {"lr": 0.003}},
}


@pytest.fixture(scope="module")
def timm() -> dict[str, Tensor]:
    return load_file(Path(__file__).parent / "golden" / "timm_lamb.safetensors")


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("case", TIMM)
def test_equals_timm(timm, case, dtype, bound, foreach):
    start = {key[6:]: t for key, t in timm.items() if key.startswith("start/")}
    params = {name: nn.Parameter(t.to(dtype, copy=True)) for name, t in start.items()}
    options = dict(TIMM[case])
    groups = [
        {"params": [p for p in params.values() if p.dim() > 1]},
        {"params": [p for p in params.values() if p.dim() < 2], **options.pop("vectors", {})},
    ]
    optimizer = Lamb(groups, foreach=foreach, **options)
    for step in range(50):
        for name, p in params.items():
            p.grad = 0.3 * p.detach() + timm[f"noise/{name}"][step].to(dtype)
        optimizer.step()
    expected = [timm[f"{case}/{str(dtype)[6:]}/{name}"] for name in params]
    assert distance(list(params.values()), expected, list(start.values())) < bound


def test_every_option_set_of_timm_is_compared(timm):
    assert {key.split("/")[0] for key in timm} == {*TIMM, "start", "noise"}


def distance(params: Sequence[Tensor], others: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    """‖w − w_ref‖ / ‖w_ref − w_start‖ over all parameters."""
    flat = [torch.cat([t.detach().double().reshape(-1) for t in tensors]) for tensors in (params, others, start)]
    return float((flat[0] - flat[1]).norm() / (flat[1] - flat[2]).norm())


@pytest.mark.parametrize("streamed", [40, STREAMED], ids=["in batches", "together"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_multi_tensor_equals_per_tensor(monkeypatch, dtype, streamed):
    monkeypatch.setattr("dtrain.engines.lamb.STREAMED", streamed)
    fast, slow = parameters(dtype), parameters(dtype)
    a = Lamb([{"params": fast[:2]}, {"params": fast[2:], "weight_decay": 0.0}], lr=0.01)
    b = Lamb([{"params": slow[:2]}, {"params": slow[2:], "weight_decay": 0.0}], lr=0.01, foreach=False)
    start = [p.detach().clone() for p in fast]
    for step in range(30):
        gradients(fast, step)
        for p, q in zip(fast, slow, strict=True):
            q.grad = p.grad.clone()
        a.step()
        b.step()
    masters = [[o.state[p].get("master", p) for g in o.param_groups for p in g["params"]] for o in (a, b)]
    assert distance(masters[0], masters[1], start) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_step_in_float32(dtype):
    """Steps far below the resolution of 16 bits add up in the master copy, as in a float32 run."""
    half = parameters(dtype)
    full = [nn.Parameter(p.detach().float()) for p in half]
    optimizers = [Lamb(half, lr=1e-4), Lamb(full, lr=1e-4)]
    start = [p.detach().clone() for p in full]
    for step in range(20):
        gradients(half, step)
        for p, q in zip(half, full, strict=True):
            q.grad = p.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    masters = [optimizers[0].state[p]["master"] for p in half]
    assert distance(masters, full, start) < 1e-6
    for p, master in zip(half, masters, strict=True):
        assert torch.equal(p.detach(), master.to(dtype))
        assert {t.dtype for t in optimizers[0].state[p].values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["state_dict", "torch.save", "deepcopy"])
def test_continues_bit_for_bit(dtype, how):
    params = parameters(dtype)
    optimizer = Lamb(params, lr=0.01)
    for step in range(3):
        gradients(params, step)
        optimizer.step()
    if how == "deepcopy":
        again, others = copy.deepcopy((optimizer, params))
    else:
        others = [nn.Parameter(p.detach().clone()) for p in params]
        again = Lamb(others, lr=0.5)
        state = copy.deepcopy(optimizer.state_dict())
        if how == "torch.save":
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            state = torch.load(buffer, weights_only=True)
        again.load_state_dict(state)
    for step in range(3, 6):
        for o, ps in ((optimizer, params), (again, others)):
            gradients(ps, step)
            o.step()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_a_loaded_state_shares_no_memory_and_makes_up_missing_masters():
    params = parameters()
    optimizer = Lamb(params, lr=0.01)
    gradients(params, 0)
    optimizer.step()
    state = optimizer.state_dict()
    before = copy.deepcopy(state["state"])
    half = [nn.Parameter(p.detach().bfloat16()) for p in params]
    again = Lamb(half, lr=0.01)
    again.load_state_dict(state)
    for p in half:
        assert torch.equal(again.state[p]["master"], p.detach().float())
    gradients(half, 1)
    again.step()
    torch.testing.assert_close(state["state"], before, rtol=0, atol=0)


def test_gradients_in_another_memory_order():
    """The fused kernel reads memory linearly: a transposed gradient must not be read in memory order."""
    params, others = parameters(), parameters()
    fast, slow = Lamb(params, lr=0.01), Lamb(others, lr=0.01, foreach=False)
    gradients(params, 0)
    gradients(others, 0)
    params[0].grad = params[0].grad.t().contiguous().t()
    start = [p.detach().clone() for p in params]
    fast.step()
    slow.step()
    assert distance(params, others, start) < 1e-6


def test_parameters_that_join_later_have_their_own_step_count():
    params, expected = parameters(torch.float64), [p.detach().clone() for p in parameters(torch.float64)]
    optimizer = Lamb(params, lr=0.01)
    states: list[dict] = [{} for _ in params]
    for step in range(4):
        gradients(params, step)
        if step < 2:
            params[1].grad = None
        for w, p, state in zip(expected, params, states, strict=True):
            if p.grad is not None:
                reference_step(
                    w,
                    p.grad,
                    state,
                    lr=0.01,
                    betas=(0.9, 0.999),
                    eps=1e-6,
                    weight_decay=0.01,
                    adapt=w.dim() > 1,
                    limit=10.0,
                    bias_correction=True,
                )
        optimizer.step()
    for w, p in zip(expected, params, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-11, atol=1e-12)


def test_learning_rate_schedulers_and_closures_work():
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = Lamb([w], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 0.1)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    schedule.step()
    after = w.detach().clone()
    assert not torch.equal(after, torch.ones(2, 2))
    optimizer.step(closure)
    assert torch.equal(w.detach(), after)


def flat_copy(params: list[nn.Parameter], padding: int = 3) -> tuple[Tensor, Layout]:
    """All parameters in one buffer, as ZeRO keeps them, with NaN in its padding."""
    pieces, parts, offset = [], [], 0
    for p in params:
        parts.append(Part(p.shape, offset, p.numel()))
        pieces += [p.detach().reshape(-1), torch.full((padding,), math.nan)]
        offset += p.numel() + padding
    return torch.cat(pieces).requires_grad_(), Layout(tuple(parts))


@pytest.mark.parametrize("streamed", [1, STREAMED], ids=["part by part", "together"])
def test_flat_buffer_with_a_layout_equals_the_parameters(monkeypatch, streamed):
    monkeypatch.setattr("dtrain.engines.lamb.STREAMED", streamed)
    params = parameters()
    start = [p.detach().clone() for p in params]
    plain = Lamb(params, lr=0.01)
    wrapped = Lamb(parameters(), lr=0.01)
    flat, layout = flat_copy(params)
    wrapped.param_groups[0]["params"] = [flat]
    wrapped.attach_layout(flat, layout)
    for step in range(10):
        gradients(params, step)
        flat.grad = torch.full_like(flat, math.nan)
        for p, part in zip(params, layout.parts, strict=True):
            flat.grad[part.start : part.start + part.length] = p.grad.reshape(-1)
        plain.step()
        wrapped.step()
        torch.testing.assert_close(plain.trust_ratios(), wrapped.trust_ratios())
    found = [flat.detach()[part.start : part.start + part.length].view(part.shape) for part in layout.parts]
    assert distance(found, params, start) < 1e-6
    assert int(flat.isnan().sum()) == 3 * len(params)


@pytest.mark.parametrize("change", ["flat buffer", "copies of the parameters", "resized parameter"])
def test_tensors_it_was_not_built_with_are_refused(change):
    params = parameters()
    optimizer = Lamb(params, lr=0.01)
    if change == "flat buffer":
        optimizer.param_groups[0]["params"] = [flat_copy(params)[0]]
    elif change == "copies of the parameters":
        optimizer.param_groups[0]["params"] = [p.clone().detach() for p in params]
    else:
        params[0].data = params[0].data.reshape(-1)[:9]
    handed = optimizer.param_groups[0]["params"]
    for p in handed:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in handed]
    with pytest.raises(ShardingError, match=r"attach_zero\(optimizer, engine\)"):
        optimizer.step()
    assert all(torch.equal(b, p.detach()) or b.isnan().any() for b, p in zip(before, handed, strict=True))


def test_slices_marked_by_other_shardings_are_refused():
    for mark, text in (("_fsdp_flattened", "FSDP2"), ("tensor_model_parallel", "DTensor")):
        p = nn.Parameter(torch.ones(4))
        setattr(p, mark, True)
        with pytest.raises(ShardingError, match=text):
            Lamb([p], lr=0.1)


def test_layouts_that_cannot_be_are_refused():
    optimizer = Lamb(parameters(), lr=0.01)
    flat, shape = torch.zeros(10), torch.Size([6])
    for parts in ([Part(shape, 0, 6), Part(shape, 5, 4)], [Part(shape, 6, 6)]):
        with pytest.raises(ShardingError, match="overlaps another or lies outside"):
            optimizer.attach_layout(flat, Layout(tuple(parts)))


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"eps": -1e-6}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}, {"max_trust_ratio": 0.0}],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Lamb([nn.Parameter(torch.ones(2))], **{"lr": 0.1, **wrong})


def test_large_float32_norm_on_the_cpu():
    t = torch.randn(3_000_017, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(_cpu_norm(t), t.double().norm(), rtol=1e-8, atol=0)
    torch.testing.assert_close(_cpu_norm(t[:100]), t[:100].double().norm(), rtol=1e-12, atol=0)
    assert _cpu_norm(t[:0]).item() == 0.0
