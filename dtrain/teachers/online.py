"""A teacher that computes its outputs during the training of its students, on the batch that they are trained on.

student 1 ── outputs(batch) ──▶ one forward pass of the teacher, for all kinds that any student of the group needs
student 2 ── outputs(batch) ──▶ the same outputs, without another pass
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
    """A model, in eval mode, that computes outputs without gradients and in a precision of its own.

    The kind `embedding_gradients` is the gradient of the teacher's cross-entropy with respect to its embeddings; even
    then its parameters get no gradient.

    Args:
        model: the module that is called. It may be sharded over the ranks; all of them must then call it together.
        device: the device of the model.
        precision: 'fp32', or the autocast type 'bf16' or 'fp16'.
        inner: the model without wrappers, in which options and layers are looked up; default: `model`.
        batches: for how many batches outputs are kept: as many as a student of the group sees in one step, since
            students step one after another.

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
        # By the identity of the tensor of tokens, which is kept here, too: two batches never share one.
        self._kept: OrderedDict[int, tuple[Tensor, ByName, Any]] = OrderedDict()

    def expect(self, kinds: Iterable[str]) -> None:
        """Announce, before the first batch, the kinds that a student needs, so that one pass serves all students."""
        self._asked |= set(kinds)

    def outputs(self, batch: Batch, kinds: Sequence[str]) -> ByName:
        """Outputs of the batch by kind, in the dtype in which they were computed; `at_layer` names those of layers."""
        tokens = batch.inputs["input_ids"]
        kept = self._kept.get(id(tokens))
        if kept is None or not set(kinds) <= kept[1].keys():
            self.expect(kinds)
            while len(self._kept) >= self.batches:  # free the oldest first: the memory may not hold two batches
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
        if event is not None:  # they may have been computed on the stream of another student
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
        # No inference mode: autograd cannot save its tensors for the student's backward pass.
        with torch.no_grad():
            return self._pass(batch, inside, plain)

    def _pass(self, batch: Batch, inside: set[str], plain: list[str]) -> ByName:
        with autocast(self.precision, self.device), taking(self.inner, inside) as taken:
            beside = {name: batch.beside[name] for name in getattr(self.inner, "reads_beside", ())}
            output = self.model(**batch.inputs, **beside, **model_options(self.inner, plain))
            return taken() | {name: pick(name, output) for name in plain}
