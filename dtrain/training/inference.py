"""A model's outputs for many rows, as precomputing and evaluation need them.

    batches of rows -> collated and copied ahead -> model -> what is kept of its output, in the order of the batches

On a CPU every product runs on one thread, and the cores compute several batches at a time: so an output is a
function of its batch alone, bit for bit, whatever the number of ranks, cores or threads. (A product shared by
two threads may add in another order.) On a GPU threads collate and copy ahead, and nothing waits for the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.data import EncodedSplit
from dtrain.engines.precision import autocast
from dtrain.errors import DtrainError
from dtrain.log import say_anywhere
from dtrain.models.sequence import SequenceTagger

Item = TypeVar("Item")
Result = TypeVar("Result")
Batch = dict[str, Tensor]
Answer = tuple[Tensor, ...]

BATCH_TOKENS = 4096  # padded tokens in one call of a model, unless the recipe says otherwise
CPU_BATCH_TOKENS = 512  # the same for a transformer on a CPU: what its layers pass on then stays in the cache


def usual_tokens(model: nn.Module, device: torch.device) -> int:
    """Padded tokens in one call of `model`, where the recipe does not say how many.

    A BERT-base on a CPU answers 145 rows a second in batches of 512 tokens, 100 in batches of 4,096. LSTMs and convolutions
    take the large ones, as a step of an LSTM costs as much for few rows.
    """
    large = any(getattr(getattr(module, "config", None), "num_hidden_layers", 0) for module in model.modules())
    return CPU_BATCH_TOKENS if large and device.type == "cpu" else BATCH_TOKENS


def cast_products(model: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """Keep the weights of linear layers and convolutions in autocast's type, for a model that is not trained further.

    The outputs have the same bits: autocast would cast these weights again for every batch, which takes a tenth of
    the time of BERT-base on a CPU with batches of 2,048 tokens.
    """
    if precision != "fp32":
        with autocast(precision, device):
            dtype = torch.get_autocast_dtype(device.type)
        exempt = model.emissions if isinstance(model, SequenceTagger) else None  # float32 under autocast, too
        # Weights shared with an embedding stay: embeddings are added up in float32.
        shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d) and module is not exempt and id(module.weight) not in shared:
                module.to(dtype)
    return model


def pack_products(model: nn.Module, device: torch.device) -> nn.Module:
    """Lay out bf16 weights of linear layers as a CPU's products read them, for a model that is not trained further.

    The outputs have the same bits: torch would lay them out again for every batch, which takes about a tenth of
    the time of BERT-base. Does nothing on a GPU and on CPUs without products in bf16.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return model
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16:
                setattr(module, name, _PackedLinear(child))
    return model


class _PackedLinear(nn.Module):
    """The operator that torch's own compiler puts in place of a linear layer on a CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input.bfloat16(), self.weight, self.bias, "none", [], "")


def in_order(batches: list[np.ndarray], answers: list[Tensor]) -> Tensor:
    """One tensor [N, C] from the answers [B, C] of batches that hold each of 0 .. N-1 once."""
    place = np.empty(sum(map(len, batches)), dtype=np.int64)
    place[np.concatenate(batches)] = np.arange(len(place))
    return torch.cat(answers)[torch.from_numpy(place).to(answers[0].device)]


def forward_outputs(
    model: nn.Module,
    part: EncodedSplit,
    batches: Iterable[np.ndarray],
    *,
    outputs: Callable[[Any], Answer],
    device: torch.device,
    precision: str,
    threads: int,
    options: Mapping[str, Any] | None = None,
    split: bool = True,
) -> Iterator[Answer]:
    """What `outputs` keeps for each batch of row numbers of `part`, on `device`, in the order of `batches`.

    Batches may come from a generator; it is asked for a few more than have been answered. The model is moved to
    `device`, answers in eval mode, and gets its mode back in the end. A batch that does not fit into memory is
    answered in halves, and so is every later one of its size: rounding then may differ in the last digit. Tensors
    [B, N, ...] whose N differs between the halves are padded with zeros on the right.

    Args:
        outputs: picks tensors with the batch's rows first from the model's output; called in inference mode and
            under autocast, by the thread that ran the model.
        options: further arguments for every call of the model.
        precision: 'fp32', or the autocast type 'bf16' or 'fp16'.
        threads: CPU cores to use.
        split: False: a batch that does not fit is an error, for a model whose calls other ranks count on.

    Raises:
        DtrainError: a single row, or without `split` a batch, does not fit into memory.
    """
    forward = _Forward(model.to(device), outputs, options or {}, device, precision, split)
    training = model.training
    model.eval()
    try:
        if device.type == "cpu":
            yield from in_threads(lambda rows: forward(part.collate(rows)), batches, threads)
        else:
            # Two threads collate ahead; more would only contend for the interpreter.
            for batch in in_threads(lambda rows: _pinned(part.collate(rows)), batches, min(2, threads)):
                yield forward({name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()})
    finally:
        model.train(training)


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int = 2) -> Iterator[Result]:
    """Results of `work` in the order of `items`, computed by `threads` threads that run a little ahead.

    `items` is asked for the next one by the calling thread; at most `threads` x `ahead` results wait.
    """
    # OpenMP's number of threads is a setting of each thread: every worker sets its own, and the caller's stays.
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= threads * ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pinned(batch: Batch) -> Batch:
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


class _Forward:
    """The model on one collated batch, in as many pieces as memory makes necessary."""

    def __init__(
        self,
        model: nn.Module,
        outputs: Callable[[Any], Answer],
        options: Mapping[str, Any],
        device: torch.device,
        precision: str,
        split: bool,
    ) -> None:
        self.model = model
        self.outputs = outputs
        self.options = options
        self.device = device
        self.precision = precision
        self.split = split
        self.limit: float = float("inf")  # padded tokens in one call

    def __call__(self, batch: Batch) -> Answer:
        # Each thread has an inference mode and an autocast mode of its own.
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self._answer(batch)

    def _answer(self, batch: Batch) -> Answer:
        rows, length = batch["input_ids"].shape
        if rows == 1 or rows * length <= self.limit:
            try:
                return self.outputs(self.model(**batch, **self.options))
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if rows == 1:
                    raise DtrainError(
                        f"one row of {length} tokens does not fit into the memory of {self.device}"
                    ) from None
                if not self.split:
                    raise DtrainError(
                        f"{rows} rows of {length} tokens do not fit into the memory of {self.device}: lower batch_tokens"
                    ) from None
            # Outside of the handler, which keeps the failed attempt's tensors alive.
            self._lower_limit(rows * length // 2)
        half = (rows + 1) // 2
        pieces = ({name: t[part] for name, t in batch.items()} for part in (slice(half), slice(half, None)))
        first, second = (self._answer(piece) for piece in pieces)
        return tuple(map(_joined, first, second))

    def _lower_limit(self, tokens: int) -> None:
        if self.limit == float("inf"):
            say_anywhere(f"out of memory on {self.device}: going on with at most {tokens} tokens a batch")
        self.limit = min(self.limit, tokens)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """Two [B, N, ...] as one, N the larger of both."""
    if first.dim() > 1:
        length = max(first.shape[1], second.shape[1])
        first, second = (functional.pad(t, [0, 0] * (t.dim() - 2) + [0, length - t.shape[1]]) for t in (first, second))
    return torch.cat([first, second])


def _out_of_memory(error: Exception) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
