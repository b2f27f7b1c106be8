"""A teacher that computes its outputs beside its students, on the very batch that they are trained on.

student 1 ── outputs(batch) ──▶ one pass of the teacher, for all that any student of the group asks for
student 2 ── outputs(batch) ──▶ the same answers
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.data.batch import Batch, ByName
from dtrain.engines.precision import autocast
from dtrain.knowledge.collect import model_options, pick
from dtrain.knowledge.kinds import at_layer, layer_of
from dtrain.losses.outputs import full_precision
from dtrain.models.inside import from_embeddings, taking
from dtrain.teachers.sources import TeacherSource

GRADIENTS = at_layer("embedding_gradients", 0)


class OnlineTeacher(TeacherSource):
    """A model that answers in eval mode, without gradient and in a precision of its own.

    Where the gradient of its loss by its embeddings is asked for, that is its answer; its parameters have none.

    Args:
        model: what is called; it may be cut up over the ranks, which then ask at the same time.
        inner: the model itself, by which its options and layers are found.
        device: where it is.
        precision: 'fp32', or the autocast type 'bf16' or 'fp16'.
        batches: how many batches' answers are kept: as many as a student of the group sees in one step, since students
            step one after another.

    Attributes:
        passes: how often the model was called.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        precision: str,
        *,
        inner: nn.Module | None = None,
        batches: int = 1,
    ) -> None:
        self.model, self.inner = model, inner or model
        self.device, self.precision, self.batches = device, precision, batches
        self.passes = 0
        self._asked: set[str] = set()
        # By the identity of the tokens: what has other ones, as masked rows of another step, is another batch.
        self._kept: OrderedDict[int, tuple[Tensor, ByName, Any]] = OrderedDict()

    def expect(self, kinds: Iterable[str]) -> None:
        """Say before the first batch what a student will ask for, so that one pass is enough for all."""
        self._asked |= set(kinds)

    def outputs(self, batch: Batch, kinds: Sequence[str]) -> ByName:
        """The asked outputs of the batch; of layers by the names of `at_layer`, in the type they were computed in."""
        tokens = batch.inputs["input_ids"]
        kept = self._kept.get(id(tokens))
        if kept is None or not set(kinds) <= kept[1].keys():
            self.expect(kinds)
            while len(self._kept) >= self.batches:  # let go first: two batches' states may not fit
                self._kept.popitem(last=False)
            answers = self._compute(batch)
            event = None
            if self.device.type == "cuda":
                event = torch.cuda.Event()
                event.record()
            kept = self._kept[id(tokens)] = tokens, answers, event
        self._kept.move_to_end(id(tokens))
        _, answers, event = kept
        found = {kind: answers[kind] for kind in kinds}
        if event is not None:  # another student's stream may have computed them
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for tensor in found.values():
                tensor.record_stream(stream)
        return found

    def _compute(self, batch: Batch) -> ByName:
        inside = {name for name in self._asked if layer_of(name)} - {GRADIENTS}
        plain = sorted(self._asked - inside - {GRADIENTS})
        self.passes += 1
        if GRADIENTS in self._asked:
            with torch.enable_grad(), from_embeddings(self.inner) as embeddings:
                found = self._pass(batch, inside, [*{*plain, "logits"}])
                errors = functional.cross_entropy(
                    full_precision(found["logits"]), batch.targets["labels"], reduction="sum"
                )
                (gradient,) = torch.autograd.grad(errors, embeddings)
            return {name: answer.detach() for name, answer in found.items()} | {GRADIENTS: gradient}
        # Not inference mode, whose tensors autograd does not keep for the student's backward pass.
        with torch.no_grad():
            return self._pass(batch, inside, plain)

    def _pass(self, batch: Batch, inside: set[str], plain: list[str]) -> ByName:
        with autocast(self.precision, self.device), taking(self.inner, inside) as taken:
            beside = {name: batch.beside[name] for name in getattr(self.inner, "reads_beside", ())}
            output = self.model(**batch.inputs, **beside, **model_options(self.inner, plain))
            return taken() | {name: pick(name, output) for name in plain}
