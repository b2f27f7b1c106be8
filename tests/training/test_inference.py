"""Batched inference: results are in order, each product uses one thread, and batches are made smaller if memory is
short.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from dtrain.data import EncodedSplit, inference_batches
from dtrain.errors import DtrainError
from dtrain.models import ClassifierOutput, own
from dtrain.training.inference import (
    cast_products,
    forward_outputs,
    in_order,
    in_threads,
    pack_products,
    usual_tokens,
)

CPU = torch.device("cpu")


def forward_batches(model, part, batches, **how):
    """Logits float32 [B, C] for each batch of row numbers."""
    for (logits,) in forward_outputs(model, part, batches, outputs=lambda output: (output.logits.float(),), **how):
        yield logits


def forward_logits(model, part, indices, *, batch_tokens, **how):
    """Logits of the rows `indices` [N], float32 [N, C], in their order."""
    batches = inference_batches(part.lengths[indices], batch_tokens)
    return in_order(batches, list(forward_batches(model, part, (indices[batch] for batch in batches), **how)))


def test_transformers_on_a_cpu_get_small_batches() -> None:
    bert = BertForSequenceClassification(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    inside = torch.nn.Sequential(torch.nn.Linear(2, 2), bert)
    assert [usual_tokens(model, CPU) for model in (bert, inside, torch.nn.LSTM(2, 2))] == [512, 512, 4096]
    assert usual_tokens(bert, torch.device("cuda")) == 4096


LABELS = ["a", "b", "c"]


def made_up_part(rows: int = 120) -> EncodedSplit:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 30, rows)
    return EncodedSplit(
        ids=np.arange(rows),
        labels=np.zeros(rows, dtype=np.int64),
        tokens=random.integers(1, 50, lengths.sum()).astype(np.int32),
        types=None,
        offsets=np.concatenate([[0], lengths]).cumsum(),
        pad_id=0,
        load_rows=lambda: pytest.fail("not needed"),
    )


def bilstm():
    shape = {"embedding": 32, "hidden": 32, "layers": 1, "pooling": "final", "dropout": 0.5}
    return own.from_config(own.new_config("dtrain-bilstm", shape, vocabulary=50, labels=LABELS, pad_id=0))


def textcnn():
    shape = {"embedding": 32, "filters": 32, "widths": [2, 3], "dropout": 0.5}
    return own.from_config(own.new_config("dtrain-textcnn", shape, vocabulary=50, labels=LABELS, pad_id=0))


def tagger():
    torch.manual_seed(0)
    shape = {"embedding": 32, "fusion": "last", "lstm": 16, "dropout": 0.5, "crf": True, "constrain": False}
    config = own.new_config("dtrain-tagger", shape, vocabulary=50, labels=["O", "B-a", "I-a", "E-a", "S-a"], pad_id=0)
    return own.from_config({**config, "encoder": None})


def idcnn():
    shape = {"embedding": 32, "filters": 16, "width": 3, "dilations": [1, 2], "blocks": 2, "dropout": 0.5}
    shape |= {"crf": True, "constrain": True}
    labels = ["O", "B-a", "I-a", "E-a", "S-a"]
    return own.from_config(own.new_config("dtrain-idcnn", shape, vocabulary=50, labels=labels, pad_id=0))


def bert():
    config = BertConfig(
        vocab_size=50,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


class Picky(torch.nn.Module):
    """Refuses batches of more than `most` padded tokens; answers with the sum of a row's tokens."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error = most, error
        self.sizes: list[int] = []

    def forward(self, input_ids, attention_mask):
        self.sizes.append(input_ids.numel())
        if input_ids.numel() > self.most:
            raise self.error
        total = (input_ids * attention_mask).sum(1, keepdim=True).float()
        return ClassifierOutput(total, total)


@pytest.mark.parametrize("build", [bilstm, textcnn, bert, tagger, idcnn])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bits_do_not_depend_on_threads(build, precision):
    torch.manual_seed(0)
    model, part = build(), made_up_part()
    batches = inference_batches(part.lengths, 256)

    def answers(threads):
        return list(forward_batches(model, part, batches, device=CPU, precision=precision, threads=threads))

    first = answers(1)
    assert model.training  # the mode is as before, and dropout did not run:
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(first, answers(1), strict=True))
    for threads in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(first, answers(threads), strict=True))


@pytest.mark.parametrize("build", [bilstm, textcnn, bert, tagger, idcnn])
def test_weights_cast_ahead_give_the_same_bits(build):
    torch.manual_seed(0)
    model, part = build(), made_up_part()

    def answers(threads=1):
        batches = inference_batches(part.lengths, 256)
        return list(forward_batches(model, part, batches, device=CPU, precision="bf16", threads=threads))

    before = answers()
    cast_products(model, "bf16", CPU)
    if build is not tagger:  # a tagger without an encoder has no product in half precision
        assert any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(answers(), before, strict=True))
    plain = sum(type(module) is torch.nn.Linear for module in model.modules())
    pack_products(model, CPU)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported() and build is bert:
        assert plain > sum(type(module) is torch.nn.Linear for module in model.modules()) == 0
    for threads in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(answers(threads), before, strict=True))


def test_logits_come_in_the_order_that_was_asked_for():
    torch.manual_seed(0)
    model, part = bert(), made_up_part()
    rows = np.random.default_rng(1).permutation(120)[:77]
    found = forward_logits(model, part, rows, device=CPU, batch_tokens=200, precision="fp32", threads=2)
    model.eval()
    with torch.no_grad():
        alone = [
            model(input_ids=torch.from_numpy(part.tokens[part.offsets[r] : part.offsets[r + 1]][None]).long())
            for r in rows
        ]
    torch.testing.assert_close(found, torch.cat([a.logits for a in alone]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_goes_on_with_smaller_batches(error, capsys):
    part = made_up_part()
    model = Picky(100, error)
    rows = np.arange(120)
    found = forward_logits(model, part, rows, device=CPU, batch_tokens=400, precision="fp32", threads=1)
    sums = [part.tokens[a:b].sum() for a, b in zip(part.offsets, part.offsets[1:], strict=False)]
    assert found[:, 0].tolist() == [float(s) for s in sums]
    assert capsys.readouterr().out.count("out of memory on cpu") == 1
    assert sum(size > 100 for size in model.sizes) <= 3  # 400, 200: later batches are cut before they fail


def test_halves_of_different_length_are_padded_alike():
    """The outputs [B, N, ...] of a batch that did not fit equal those of one that did."""
    part = made_up_part()
    batches = inference_batches(part.lengths, 400)

    class Tagging(Picky):
        def forward(self, input_ids, attention_mask, scale):
            super().forward(input_ids, attention_mask)
            longest = int(attention_mask.sum(1).max())  # as in a model that depends on the padding of its batch
            return input_ids[:, :longest], attention_mask[:, :longest].bool(), scale

    def outputs(found):
        ids, mask, scale = found
        return scale * (ids * mask)[..., None].repeat(1, 1, 2), mask, ids[:, 0]

    def answers(most):
        return list(
            forward_outputs(
                Tagging(most, MemoryError()),
                part,
                batches,
                outputs=outputs,
                options={"scale": 3},
                device=CPU,
                precision="fp32",
                threads=1,
            )
        )

    halved, whole = answers(90), answers(400)
    for batch, ours, expected in zip(batches, halved, whole, strict=True):
        assert ours[0].shape == (len(batch), part.lengths[batch].max(), 2) and ours[1].dtype == torch.bool
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_a_single_row_that_does_not_fit_is_told():
    with pytest.raises(DtrainError, match=r"one row of \d+ tokens does not fit into the memory of cpu"):
        forward_logits(
            Picky(5, MemoryError()),
            made_up_part(),
            np.arange(120),
            device=CPU,
            batch_tokens=64,
            precision="fp32",
            threads=1,
        )


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        forward_logits(
            Picky(5, RuntimeError("shapes")),
            made_up_part(),
            np.arange(120),
            device=CPU,
            batch_tokens=64,
            precision="fp32",
            threads=2,
        )


def test_threads_keep_the_order_run_little_ahead_and_leave_the_caller_alone():
    before = torch.get_num_threads()
    asked: list[int] = []

    def items():
        for item in range(30):
            asked.append(item)
            yield item

    def work(item):
        time.sleep(0.001 * (item % 3))
        return item, torch.get_num_threads(), threading.get_ident()

    found = []
    for result in in_threads(work, items(), threads=3):
        found.append(result)
        assert len(asked) <= len(found) + 6
    assert [item for item, *_ in found] == list(range(30))
    assert {threads for _, threads, _ in found} == {1}
    assert threading.get_ident() not in {ident for *_, ident in found}
    assert torch.get_num_threads() == before


def test_a_failed_item_raises_in_its_place_and_ends_the_threads():
    done: list[int] = []

    def work(item):
        if item == 3:
            raise ValueError("three")
        done.append(item)
        return item

    results = in_threads(work, range(100), threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(done) < 10
