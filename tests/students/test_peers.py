"""Deep mutual learning: the divergence compared with numbers that were computed in another way, and a step compared
with autograd by hand.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dtrain.data import EncodedSplit
from dtrain.losses.outputs import mutual_divergence
from dtrain.students.ways import Peers
from dtrain.training.checkpoint import TENSORS
from tests.students.conftest import Train, student


def test_divergence_by_scipy() -> None:
    from scipy.stats import entropy

    random = np.random.default_rng(0)
    z, *others = random.normal(size=(4, 5, 3))
    p, *given = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (z, *others))
    expected = [np.mean([entropy(q[row], p[row]) for q in given]) for row in range(5)]
    found = mutual_divergence(torch.tensor(z), torch.tensor(np.stack(others)))
    assert np.allclose(found.numpy(), expected, atol=1e-12)


def test_one_step_of_sgd_by_hand(job: Any, rows: EncodedSplit) -> None:
    """W <- W - lr (grad CE_k + 1/(K-1) sum_l grad KL(p_l || p_k)) / B, the others taken as constant."""
    from dtrain.training.state import TrainState

    changes = {"optimizer": {"type": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}, "clip": None}
    changes["schedule"] = {"type": "constant", "warmup": 0}
    runs = [
        TrainState(job(student(n, shape, seed=i, **changes), peers=True))
        for i, (n, shape) in enumerate(zip("abc", ("textcnn", "bilstm", "textcnn"), strict=True))
    ]
    index = runs[0]._batch
    batch = {**rows.collate(index)}
    labels = torch.from_numpy(rows.labels[index])
    before = [{n: p.detach().clone() for n, p in run.job.engine.inner.named_parameters()} for run in runs]
    logits = [run.job.engine.inner(**batch).logits for run in runs]
    probabilities = [answer.softmax(1).detach() for answer in logits]
    expected = []
    for k, run in enumerate(runs):
        hard = functional.cross_entropy(logits[k], labels, ignore_index=-1, reduction="sum")
        soft = (
            sum((q * (q.log() - logits[k].log_softmax(1))).sum() for other, q in enumerate(probabilities) if other != k)
            / 2
        )
        parameters = dict(run.job.engine.inner.named_parameters())
        gradients = torch.autograd.grad((hard + soft) / len(index), list(parameters.values()))
        expected.append({n: before[k][n] - 0.1 * g for n, g in zip(parameters, gradients, strict=True)})
    assert not Peers()(runs)
    for run, wanted in zip(runs, expected, strict=True):
        for name, parameter in run.job.engine.inner.named_parameters():
            torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-5, atol=1e-7)
        run.close()


def test_who_diverges_leaves_before_the_others_learn_from_it(train: Train, job: Any) -> None:
    def spoil(own: Any) -> Any:
        calls = 0

        def loss(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            total, sums, counts = own(*arguments)
            return (total * math.nan if calls == 9 else total), sums, counts

        return loss

    jobs = [job(student("a"), peers=True), job(student("bad", seed=4), loss=spoil, peers=True)]
    jobs.append(job(student("b", seed=5), peers=True))
    ended = train([], Peers(), jobs=jobs)
    assert "not finite at step 8" in str(ended["bad"].error)
    assert all(ended[name].error is None and ended[name].best for name in "ab")


def lose(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


def damage(checkpoint: Path) -> None:
    file = checkpoint / TENSORS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [lose, damage])
def test_stopped_and_continued_from_a_step_that_all_have(train: Train, job: Any, harm: Callable[[Path], None]) -> None:
    """A kill between the checkpoints of two peers leaves them at different steps; both continue from the last common
    one.
    """
    from dtrain.errors import Stopped

    def jobs(folder: str, **how: Any) -> list[Any]:
        students = [student("a", checkpoint_every=5, dropout=0.3), student("b", "bilstm", seed=4, checkpoint_every=5)]
        return [job(s, folder=folder, peers=True, **how) for s in students]

    class StopAt:
        reason = "test"
        asked = 0

        def anywhere(self) -> bool:
            StopAt.asked += 1
            return StopAt.asked == 4

    undisturbed = train([], Peers(), jobs=jobs("undisturbed"))
    with pytest.raises(Stopped):
        train([], Peers(), jobs=jobs("stopped", stop=StopAt()))
    (own,) = [j.checkpoints for j in jobs("stopped") if j.title == "b"]
    newest = max(own.glob("step-*"))
    assert newest.name == "step-00000020"
    harm(newest)
    again = train([], Peers(), jobs=jobs("stopped"))
    for name, one in again.items():
        for key, tensor in one.best.items():
            assert torch.equal(tensor, undisturbed[name].best[key]), (name, key)


def test_gradcheck_of_the_divergence() -> None:
    generator = torch.Generator().manual_seed(2)
    z, *others = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda own: mutual_divergence(own, torch.stack(others)), z.requires_grad_())
