"""A BERT with a classifier after several of its layers, left early at inference (Phuong and Lampert, ICCV 2019)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class MultiExitOutput(NamedTuple):
    """`logits` [B, C] and `features` [B, H] of the exit that each row took.

    `exits` float [E, B, C] are the logits of every exit, None where rows could leave early. `exit` int64 [B] is the
    exit that each row took, counted from 0.
    """

    logits: Tensor
    features: Tensor
    exits: Tensor | None
    exit: Tensor


class MultiExit(nn.Module):
    """Encoder; after each layer of `exits`, dropout and a linear classifier on the first token's state.

    In training, and without a `confidence`, all exits are computed and `logits` are those of the last one. In eval mode
    with a `confidence`, a row leaves at the first exit whose largest probability is at least that, and later layers
    compute only the rows that have not left.

    Args:
        encoder: a BERT without head.
        vocab_size: not used, the encoder has its own.
        classes: C.
        pad_token_id: not used, likewise.
        exits: numbers of layers, from 1, ascending; the last layer is always an exit.
        confidence: in (0, 1], or None: every row passes through all layers.
        dropout: before the classifiers.

    Raises:
        ValueError: for an exit beyond the encoder's last layer.
    """

    every_layer = False  # whether inference calls every layer and classifier, even when all rows have left
    config: dict[str, Any]

    def __init__(
        self,
        *,
        encoder: nn.Module,
        vocab_size: int,
        classes: int,
        pad_token_id: int,
        exits: list[int],
        confidence: float | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        bert: Any = encoder
        layers = len(bert.encoder.layer)
        wrong = [number for number in exits if number > layers]
        if wrong:
            raise ValueError(f"exits: {wrong[0]} is more than the {layers} layers of the encoder")
        self.exits = sorted({*exits, layers})
        self.confidence = confidence
        self.dropout = nn.Dropout(dropout)
        self.classifiers = nn.ModuleList(nn.Linear(bert.config.hidden_size, classes) for _ in self.exits)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> MultiExitOutput:
        """Classify texts padded on the right.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 1 for tokens and 0 for padding.
            token_type_ids: int64 [B, L]; None for all 0.
        """
        bert: Any = self.encoder
        states = bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        visible = attention_mask[:, None, None, :].bool()
        if not self.training and self.confidence is not None:
            return self._leave_early(states, visible, self.confidence)
        answers: list[Tensor] = []
        for number, layer in enumerate(bert.encoder.layer, start=1):
            states = layer(states, visible)
            if number in self.exits:
                answers.append(self._answer(len(answers), states))
        last = torch.full_like(input_ids[:, 0], len(self.exits) - 1)
        return MultiExitOutput(answers[-1], states[:, 0], torch.stack(answers), last)

    def _answer(self, exit: int, states: Tensor) -> Tensor:
        return self.classifiers[exit](self.dropout(states[:, 0]))

    def _leave_early(self, states: Tensor, visible: Tensor, confidence: float) -> MultiExitOutput:
        left = torch.arange(len(states), device=states.device)  # rows that have not left yet
        taken, features = torch.empty_like(left), torch.empty_like(states[:, 0])
        logits = torch.empty(0)
        exit = 0
        bert: Any = self.encoder
        for number, layer in enumerate(bert.encoder.layer, start=1):
            states = layer(states, visible)
            if number not in self.exits:
                continue
            answer = self._answer(exit, states)
            if len(left):
                if exit == 0:
                    logits = torch.empty_like(answer)
                    features = features.to(states.dtype)
                sure = answer.float().softmax(-1).amax(-1) >= confidence
                leaves = torch.ones_like(sure) if number == self.exits[-1] else sure
                rows = left[leaves]
                logits[rows], features[rows], taken[rows] = answer[leaves], states[leaves, 0], exit
                left = left[~leaves]
                if len(left):
                    states, visible = states[~leaves], visible[~leaves]
                elif not self.every_layer:
                    break
            exit += 1
        return MultiExitOutput(logits, features, None, taken)
