"""Several tasks, one model: an encoder that all of them share, and a head for each.

Every head takes part in every training pass, whichever task the batch belongs to: the heads of other tasks compute one
row, and their outputs are multiplied by 0 and added. So each parameter has a gradient in each step, and modules are
always called in the same order, as DDP, FSDP2 and ZeRO need it. A frozen head, as in a phase on other tasks, takes no
part.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.models.crf import LinearChainCRF
from dtrain.models.output import ClassifierOutput, TaggerOutput
from dtrain.models.sequence import SequenceTagger

IDLE = 2  # positions that a tagging head computes for batches of other tasks: two, so that its CRF has a transition


class TextHead(nn.Module):
    """Pooled vector [B, H] -> logits [B, outputs]."""

    def __init__(self, features: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """float [B, H] -> float [B, outputs]."""
        return self.classifier(self.dropout(pooled))


class TagHead(SequenceTagger):
    """States of characters [B, N, H] -> what a tagger returns; see `SequenceTagger.answer`."""

    def __init__(self, tags: list[str], features: int, dropout: float, crf: bool, constrain: bool) -> None:
        super().__init__(tags=tags, features=features, crf=crf, constrain=constrain)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor, tags: Tensor | None, marginals: bool) -> TaggerOutput:
        """Arguments as of `SequenceTagger.answer`."""
        return self.answer(self.dropout(states), mask, tags, marginals)


class MultiTask(nn.Module):
    """A model that computes one task at a time: `model(task=NAME, input_ids=, attention_mask=, ...)`.

    `of_task(NAME)` gives a model of that task alone, with the same weights.

    Args:
        vocab_size, pad_token_id: not used, the encoder has its own.
        encoder: a transformer; tasks other than tagging use its pooler, if it has one.
        heads: for each task, in order, `tags` (whether it is a tagging task), `labels` (names of the outputs) and
            `config` (further entries of the config.json of a model of this task alone).
        dropout: on the inputs of the heads.
        crf, constrain: of heads for tagging; see `SequenceTagger`.

    Raises:
        ValueError: for `constrain` without `crf`, or no head.
    """

    config: dict[str, Any]
    reads_pooler = True  # it uses the pooler of its encoder

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
        """The outputs of the head of `task` for texts padded on the right.

        Args:
            input_ids: int64 [B, L]; for tagging, one token per character between [CLS] and [SEP], which get no tag, so
                that N = L - 2.
            attention_mask: [B, L], 1 for tokens and 0 for padding.
            token_type_ids: int64 [B, L]; None for all 0.
            tags: for a tagging task, int64 [B, N], -1 at padding.
            marginals: for a tagging task, whether to compute the log marginals, too.

        Returns:
            Logits [B, C] and, as features, the last layer's state of the first token [B, H]; for a tagging task, a
            `TaggerOutput`.
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
    """The sum of a head's outputs for one row, multiplied by 0: a 0-d tensor."""
    if not isinstance(head, TagHead):
        return 0.0 * head(pooled[:1]).sum()
    characters = states[:1, :IDLE]
    everywhere = torch.ones(characters.shape[:2], dtype=torch.bool, device=states.device)
    outside = torch.zeros(characters.shape[:2], dtype=torch.int64, device=states.device)  # O, which may follow itself
    return 0.0 * head(characters, everywhere, outside, False).nll.sum()


def _with(output: ClassifierOutput | TaggerOutput, idle: Tensor) -> ClassifierOutput | TaggerOutput:
    """The output plus `idle`, which is 0, so that every gradient reaches the idle heads, too."""
    if isinstance(output, ClassifierOutput):
        return ClassifierOutput(output.logits + idle, output.features + idle)
    added = {
        name: values + idle for name in ("logits", "nll", "marginals") if (values := getattr(output, name)) is not None
    }
    return output._replace(**added)


class OfTask(nn.Module):
    """One task of a multi-task model, with the interface of a model of that task alone."""

    def __init__(self, model: MultiTask, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.training = model.training

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of a model of this task alone."""
        shared = {name: value for name, value in self.model.config.items() if name != "heads"}
        head = self.model.config["heads"][self.task]
        names = dict(enumerate(head["labels"]))
        return {**shared, **head["config"], "id2label": names, "label2id": {label: n for n, label in names.items()}}

    @property
    def encoder(self) -> nn.Module:
        """The encoder that all tasks share."""
        return self.model.encoder

    @property
    def classifier(self) -> nn.Module | None:
        """The linear layer that gives the logits; None for a tagging task."""
        return getattr(self.model.heads[self.task], "classifier", None)

    def forward(self, **inputs: Any) -> ClassifierOutput | TaggerOutput:
        """As `MultiTask.forward`, for this task."""
        return self.model(**inputs, task=self.task)


class TaggerOfTask(OfTask):
    """A tagging task of a multi-task model, with the methods of a `SequenceTagger`."""

    def nll(self, emissions: Tensor, mask: Tensor, tags: Tensor) -> Tensor:
        """As `SequenceTagger.nll`."""
        return self._head.nll(emissions, mask, tags)

    def log_marginals(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """As `SequenceTagger.log_marginals`."""
        return self._head.log_marginals(emissions, mask)

    def decode(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """As `SequenceTagger.decode`."""
        return self._head.decode(emissions, mask)

    @property
    def crf(self) -> LinearChainCRF | None:
        """The CRF of the head, if it has one."""
        return self._head.crf

    @property
    def _head(self) -> TagHead:
        head = self.model.heads[self.task]
        assert isinstance(head, TagHead), self.task
        return head


def for_task(model: nn.Module, task: str) -> nn.Module:
    """The model of one task where `model` is a multi-task model; any other model itself."""
    return model.of_task(task) if isinstance(model, MultiTask) else model
