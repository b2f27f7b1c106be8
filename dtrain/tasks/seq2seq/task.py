"""Text to text: batches, loss terms and scores of encoder-decoders.

training    sources, targets shifted by one ──▶ logits of every target token ──▶ sums over tokens
scoring     sources ──▶ generation, each row on one rank ──▶ text ──▶ counts for each row ──▶ BLEU, chrF, ROUGE-L
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.data import EncodedSplit, PreparedData
from dtrain.data.batch import Batch
from dtrain.data.written import load_writer
from dtrain.errors import InputError
from dtrain.losses.outputs import full_precision
from dtrain.metrics.translation import COUNTS, count_text, signature, translation_scores
from dtrain.models.decoding import NO_TOKEN, Decoding, Writer
from dtrain.recipe.training import LossSpec, Teacher
from dtrain.tasks.base import Task, check_coverage
from dtrain.tasks.seq2seq.reading import TARGET
from dtrain.tasks.seq2seq.taught import taught_rows
from dtrain.training.workers import Workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from dtrain.knowledge.reader import StoreReader
    from dtrain.recipe.schema import Knowledge

SHOWN = 8  # generated texts that the report shows


@dataclass(frozen=True)
class Scored:
    """Scoring results of a part's labelled rows, over all ranks.

    Attributes:
        counts: the counts of each row (see `count_text`), int64 [rows, COUNTS], in the order of the rows.
        loss: mean cross-entropy per token of the references; 0 if it was not computed.
        tokens: number of tokens of the references.
        written: the texts generated for the first rows, by row.
    """

    counts: np.ndarray
    loss: float
    tokens: int
    written: dict[int, str]


class Seq2Seq(Task):
    """Task `seq2seq`: texts for texts, scored by greedy decoding and, in `record`, by beam search as well."""

    name = "seq2seq"
    card_tag = "translation"
    words = "13a"  # the tokenizer of BLEU
    beam, candidates, length_penalty = 5, 5, 1.0  # beam search; its scores are reported beside those of greedy decoding

    @classmethod
    def of(cls, data: PreparedData) -> Seq2Seq:
        task = cls(data.labels, [])
        task.words = data.info["bleu"]
        return task

    def settle(self, knowledge: Knowledge) -> None:
        self.beam, self.length_penalty = knowledge.beam, knowledge.length_penalty
        self.candidates = min(knowledge.candidates or self.beam, self.beam)

    def check_vocabulary(self, name: str, tokens: int) -> None:
        """As the base class: there must be at least as many tokens as hypotheses of the beam."""
        if 0 < tokens < self.beam:
            raise InputError(
                f"knowledge.beam: {self.beam} is more than the {tokens} tokens that are written with the tokenizer of {name}, "
                "as many as the training rows have"
            )

    def answering(self, model: nn.Module, part: EncodedSplit, outputs: Sequence[str]) -> tuple[nn.Module, str | None]:
        """As the base class.

        Raises:
            InputError: the beam has more hypotheses than the teacher has tokens.
        """
        tokens = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
        search = Decoding(part.max_length, self.beam, self.candidates, self.length_penalty)
        if "sequences" not in outputs:
            return Writer(model, forced=True), None
        if self.beam > tokens:
            raise InputError(f"knowledge.beam: {self.beam} is more than the {tokens} tokens that the teacher can write")
        return Writer(model, forced="token_logits" in outputs, decoding=search), str(search)

    def taught(self, kind: str, data: PreparedData, tokenizer: str, teacher: str, store: StoreReader) -> EncodedSplit:
        return taught_rows(kind, data, tokenizer, teacher, store)

    @property
    def answer_in_words(self) -> str:
        return "answer: a text, the target, written token by token"

    ways = ("", "beam")
    compared = ("bleu", "chrf")

    def timed(self, model: nn.Module, part: EncodedSplit, way: str) -> nn.Module:
        """Generation by greedy decoding, or by beam search where `way` is "beam"."""
        search = Decoding(part.max_length, self.beam if way else 1, length_penalty=self.length_penalty)
        return Writer(model, decoding=search)

    def units(self, rows: EncodedSplit) -> np.ndarray:
        return np.maximum(rows.target_lengths, 1)  # a batch without any target must not divide by 0

    def teacher_losses(self, spec: Teacher) -> list[LossSpec]:
        return [LossSpec.model_validate({"type": "token_cross_entropy", "label_smoothing": spec.label_smoothing})]

    def collate(self, rows: EncodedSplit, index: np.ndarray, needs: set[str]) -> Batch:
        inputs, targets = rows.collate(index), rows.collate_targets(index)
        inputs.pop("target_lengths")
        known = np.ones(len(index), dtype=bool) if rows.known_prefix is None else rows.known_prefix[index]
        return Batch(
            rows=index,
            ids=rows.ids[index],
            inputs=inputs,
            targets={
                "target_tokens": targets.clamp(min=0),
                "target_mask": targets >= 0,
                "known_prefix": torch.from_numpy(known),
            },
            labelled=torch.from_numpy(rows.labels[index] >= 0),
            units=torch.from_numpy(np.maximum(rows.target_lengths[index], 1).astype(np.int64)),
        )

    def outputs(self, model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]:
        return {"token_logits": model(**batch.inputs, use_cache=False).logits}

    def scores(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, float]:
        return self._scores(self._score(model, part, workers, Decoding(part.max_length)))

    def record(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, Any]:
        """As the base class; scores of beam search have the suffix `_beam`."""
        greedy = self._score(model, part, workers, Decoding(part.max_length))
        search = Decoding(part.max_length, self.beam, length_penalty=self.length_penalty)
        by_beam = self._score(model, part, workers, search, forced=False)
        scores = self._scores(greedy) | {
            f"{name}_beam": value for name, value in translation_scores(by_beam.counts).items()
        }
        return {
            "scores": scores,
            "signature": signature(self.words),
            "beam": self.beam,
            "length_penalty": self.length_penalty,
            "written": [self._example(part, row, text, by_beam.written[row]) for row, text in greedy.written.items()],
        }

    def headline(self, scores: Mapping[str, float]) -> str:
        found = (
            f"BLEU {100 * scores['bleu']:.2f}, chrF {100 * scores['chrf']:.2f}, ROUGE-L {100 * scores['rouge_l']:.2f}"
        )
        return found + (f"; by a beam BLEU {100 * scores['bleu_beam']:.2f}" if "bleu_beam" in scores else "")

    def _scores(self, scored: Scored) -> dict[str, float]:
        return {
            **translation_scores(scored.counts),
            "rows": len(scored.counts),
            "tokens": scored.tokens,
            "loss": scored.loss,
        }

    def _score(
        self, model: nn.Module, part: EncodedSplit, workers: Workers, decoding: Decoding, *, forced: bool = True
    ) -> Scored:
        """Generate the targets of a part's labelled rows, each on one rank only, and compare them with the references.

        Args:
            forced: whether to compute the loss of the references (teacher forcing) as well.

        Raises:
            DtrainError: a row was not generated exactly once.
        """
        assert part.tokenizer is not None
        tokenizer = load_writer(part.tokenizer)
        labelled = np.flatnonzero(part.labels >= 0)
        references = part.rows()[TARGET]
        counts = torch.zeros(len(part), COUNTS + 1, dtype=torch.int64)  # the last column: how often a row was generated
        losses = torch.zeros(len(part), dtype=torch.float64)
        mine: dict[int, str] = {}

        def keep(output: Any) -> tuple[Tensor, ...]:
            return (output.tokens[:, 0], *((output.logits,) if forced else ()))

        writer = Writer(model, forced=forced, decoding=decoding)
        for rows, (tokens, *logits) in workers.outputs(writer, part, keep, labelled):
            if logits:
                losses[torch.from_numpy(rows)] = _loss(logits[0], part.collate_targets(rows))
            for row, written in zip(rows.tolist(), tokens.cpu().numpy(), strict=True):
                text = as_text(tokenizer, written)
                counts[row, :COUNTS] += torch.from_numpy(count_text(text, references[row], self.words))
                counts[row, COUNTS] += 1
                if row in labelled[:SHOWN]:
                    mine[row] = text
        counts, losses = workers.sum(counts), workers.sum(losses)
        check_coverage(part, counts[:, COUNTS])
        written = {row: text for found in workers.gather(mine) for row, text in found.items()}
        tokens_of_references = int(part.target_lengths[labelled].sum())
        return Scored(
            counts=counts[torch.from_numpy(labelled), :COUNTS].numpy(),
            # fsum rounds once, whatever the order: the mean has the same last digit for any number of ranks.
            loss=math.fsum(losses.tolist()) / max(tokens_of_references, 1),
            tokens=tokens_of_references,
            written=dict(sorted(written.items())),
        )

    def _example(self, part: EncodedSplit, row: int, greedy: str, by_beam: str) -> dict[str, str]:
        found = part.rows()[row]
        return {"source": found["text"], "target": found[TARGET], "greedy": greedy, "by_beam": by_beam}


def as_text(tokenizer: PreTrainedTokenizerFast, tokens: np.ndarray) -> str:
    """The text of generated tokens, int [max_length], which are followed by NO_TOKEN."""
    return str(tokenizer.decode(tokens[tokens != NO_TOKEN].tolist(), skip_special_tokens=True)).strip()


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over the tokens of each row, float64 [B] on the CPU; targets [B, T] end with NO_TOKEN."""
    with torch.inference_mode():
        gold = targets.to(logits.device)
        values = functional.cross_entropy(
            full_precision(logits).flatten(0, 1), gold.flatten(), reduction="none", ignore_index=NO_TOKEN
        )
        return values.view(gold.shape).double().sum(1).cpu()
