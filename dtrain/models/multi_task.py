"""Several tasks, one model: an encoder that all of them share, and a head for each.

Every head takes part in every training pass, whichever task the batch is of: those of other tasks with one row, whose
outputs are added times 0. So each parameter has a gradient in each step, as DDP, FSDP2 and ZeRO want it, and modules are
called in one order. A head that is frozen, as in a phase on other tasks, takes no part.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.models.crf import LinearChainCRF
from dtrain.models.output import ClassifierOutput, TaggerOutput
from dtrain.models.sequence import SequenceTagger

IDLE = 2  # positions that a tagger's head is given where its task is not asked: its CRF needs a transition


class TextHead(nn.Module):
    """Pooled vector [B, H] -> logits [B, outputs]."""

    def __init__(self, features: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.classifier(self.dropout(pooled))


class TagHead(SequenceTagger):
    """States of characters [B, N, H] -> emissions, and what is decided by them."""

    def __init__(self, tags: list[str], features: int, dropout: float, crf: bool, constrain: bool) -> None:
        super().__init__(tags=tags, features=features, crf=crf, constrain=constrain)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor, tags: Tensor | None, marginals: bool) -> TaggerOutput:
        return self.answer(self.dropout(states), mask, tags, marginals)


class MultiTask(nn.Module):
    """Answers for one task at a time: `model(task=NAME, input_ids=, attention_mask=, ...)`.

    `of_task(NAME)` gives a model of that task alone, with the same weights.

    Args:
        vocab_size, pad_token_id: not used, the encoder has its own.
        encoder: a transformer; where a task is not tagging, its pooler is used if it has one.
        heads: by task, in order, `tags` (whether a row has a tag a character), `labels` (names of the outputs) and
            `config` (what a model's config.json says beside them).
        dropout: on what reaches the heads.
        crf, constrain: of heads for tagging; see `SequenceTagger`.

    Raises:
        ValueError: for `constrain` without `crf`, or no head.
    """

    config: dict[str, Any]
    reads_pooler = True  # of its encoder

    def __init__(
        self,
        *,
        vocab_size: int,
        pad_token_id: int,
        encoder: nn.Module,
        heads: Mapping[str, Mapping[str, Any]],
        dropout: float,
        crf: bool,
        constrain: bool,
    ) -> None:
        super().__init__()
        if not heads:
            raise ValueError("heads: none given")
        self.encoder = encoder
        width = int(encoder.config.hidden_size)  # type: ignore[union-attr,arg-type]
        self.heads = nn.ModuleDict(
            {
                name: TagHead(list(head["labels"]), width, dropout, crf, constrain)
                if head["tags"]
                else TextHead(width, len(head["labels"]), dropout)
                for name, head in heads.items()
            }
        )
        if all(head["tags"] for head in heads.values()) and getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # type: ignore[assignment]  # a parameter without a use would have no gradient

    def freeze_heads(self, tasks: Collection[str]) -> None:
        """Freeze the heads of all tasks but these."""
        for name, head in self.heads.items():
            if name not in tasks:
                head.requires_grad_(False)

    def of_task(self, task: str) -> OfTask:
        """The model of one task; KeyError where there is none of that name."""
        tags = isinstance(self.heads[task], TagHead)
        return TaggerOfTask(self, task) if tags else OfTask(self, task)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        task: str,
        tags: Tensor | None = None,
        marginals: bool = False,
    ) -> ClassifierOutput | TaggerOutput:
        """What the head of `task` says of texts padded on the right.

        Args:
            input_ids: int64 [B, L]; for tagging a token a character between [CLS] and [SEP], which get no tag: N = L - 2.
            attention_mask: [B, L], 1 for tokens and 0 for padding.
            token_type_ids: int64 [B, L]; None for all 0.
            tags: of a tagging task int64 [B, N], -1 at padding.
            marginals: of a tagging task, also the log marginals.

        Returns:
            Logits [B, C] and the last state of the first token [B, H], which is compared with a teacher's features; of a
            tagging task what a tagger returns.
        """
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        states = found.last_hidden_state
        pooled = getattr(found, "pooler_output", None)
        pooled = states[:, 0] if pooled is None else pooled
        output: ClassifierOutput | TaggerOutput | None = None
        idle = states.new_zeros(())
        for name, head in self.heads.items():
            if name == task:
                if isinstance(head, TagHead):
                    mask = attention_mask[:, 2:].bool()  # without [CLS] and [SEP]
                    output = head(states[:, 1:-1], mask, tags, marginals)
                else:
                    output = ClassifierOutput(head(pooled), states[:, 0])
            elif self.training and torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters()):
                idle = idle + _idle(head, states, pooled)
        assert output is not None, task
        return _with(output, idle) if self.training and torch.is_grad_enabled() else output


def _idle(head: nn.Module, states: Tensor, pooled: Tensor) -> Tensor:
    """0 x what a head says of one row, a 0-d tensor."""
    if not isinstance(head, TagHead):
        return 0.0 * head(pooled[:1]).sum()
    characters = states[:1, :IDLE]
    everywhere = torch.ones(characters.shape[:2], dtype=torch.bool, device=states.device)
    outside = torch.zeros(characters.shape[:2], dtype=torch.int64, device=states.device)  # O, which may follow itself
    return 0.0 * head(characters, everywhere, outside, False).nll.sum()


def _with(output: ClassifierOutput | TaggerOutput, idle: Tensor) -> ClassifierOutput | TaggerOutput:
    """The output with `idle`, which is 0, on the way of every gradient."""
    if isinstance(output, ClassifierOutput):
        return ClassifierOutput(output.logits + idle, output.features + idle)
    added = {
        name: values + idle for name in ("logits", "nll", "marginals") if (values := getattr(output, name)) is not None
    }
    return output._replace(**added)


class OfTask(nn.Module):
    """One task of a model of several, called and asked as a model of that task alone."""

    def __init__(self, model: MultiTask, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.training = model.training

    @property
    def config(self) -> dict[str, Any]:
        """As a model of this task alone has it."""
        shared = {name: value for name, value in self.model.config.items() if name != "heads"}
        head = self.model.config["heads"][self.task]
        names = dict(enumerate(head["labels"]))
        return {**shared, **head["config"], "id2label": names, "label2id": {label: n for n, label in names.items()}}

    @property
    def encoder(self) -> nn.Module:
        return self.model.encoder

    @property
    def classifier(self) -> nn.Module | None:
        """The last layer of a task of texts."""
        return getattr(self.model.heads[self.task], "classifier", None)

    def forward(self, **inputs: Any) -> ClassifierOutput | TaggerOutput:
        return self.model(**inputs, task=self.task)


class TaggerOfTask(OfTask):
    """A tagging task: it decides, too, as a `SequenceTagger` does."""

    def nll(self, emissions: Tensor, mask: Tensor, tags: Tensor) -> Tensor:
        return self._head.nll(emissions, mask, tags)

    def log_marginals(self, emissions: Tensor, mask: Tensor) -> Tensor:
        return self._head.log_marginals(emissions, mask)

    def decode(self, emissions: Tensor, mask: Tensor) -> Tensor:
        return self._head.decode(emissions, mask)

    @property
    def crf(self) -> LinearChainCRF | None:
        return self._head.crf

    @property
    def _head(self) -> TagHead:
        head = self.model.heads[self.task]
        assert isinstance(head, TagHead), self.task
        return head


def for_task(model: nn.Module, task: str) -> nn.Module:
    """Of a model of several tasks, that of one alone; any other model itself."""
    return model.of_task(task) if isinstance(model, MultiTask) else model
