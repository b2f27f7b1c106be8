"""Normalising and encoding pairs of a source and a target text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from dtrain.data.corpus import Corpus
from dtrain.data.encode import Encoder
from dtrain.data.sources import Rows
from dtrain.data.write import Batch
from dtrain.data.written import complete_tokenizer, ends_of, learnt_tokenizer, save_tokenizer, token_counts, writer_of
from dtrain.recipe.data import Data
from dtrain.recipe.models import EncoderSpec
from dtrain.tasks.classification.preparing import TextPreparing
from dtrain.tasks.seq2seq.reading import TARGET

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHINESE = re.compile(r"[\u4e00-\u9fff]")


class SidesPreparing(TextPreparing):
    """Preparing for task `seq2seq`."""

    answers = (TARGET,)

    def texts_of(self, rows: Rows, data: Data) -> dict[str, Iterable[str]]:
        return {"text": rows.text, TARGET: rows.target}

    def info(self, corpus: Corpus, data: Data) -> dict[str, Any]:
        return {"bleu": _bleu_words(corpus, data)}

    def tokenizer(
        self, spec: EncoderSpec | None, texts: Iterable[list[str]], data: Data, targets: Iterable[list[str]] = ()
    ) -> PreTrainedTokenizerFast:
        assert spec is not None  # every model of this task brings its own tokenizer
        two = bool(getattr(spec, "two_vocabularies", False))
        return learnt_tokenizer(spec.vocabulary_size, texts, targets, data.normalize.lower, two=two)

    def complete(self, tokenizer: PreTrainedTokenizerFast, source: str) -> None:
        config, _ = PreTrainedConfig.get_config_dict(source)
        complete_tokenizer(tokenizer, source, config)

    def save(self, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        save_tokenizer(tokenizer, folder)

    def record(self, tokenizer: PreTrainedTokenizerFast, spec: object) -> dict[str, Any]:
        """Sizes of the source and the target vocabulary, and the token with which the decoder starts."""
        read, written = token_counts(tokenizer)
        return {"vocabulary": read, "target_vocabulary": written, "start": ends_of(tokenizer)["start"]}

    def encode(self, tokenizer: PreTrainedTokenizerFast, data: Data) -> _EncodeSides:
        return _EncodeSides(*(Encoder(t, data.max_length, False) for t in (tokenizer, writer_of(tokenizer))))


class _EncodeSides:
    types = False
    targets = True

    def __init__(self, source: Encoder, target: Encoder) -> None:
        self.source, self.target = source, target

    def __call__(self, batch: Batch) -> Batch:
        read, written = self.source(batch["text"]), self.target(batch[TARGET])
        there = [label >= 0 for label in batch["label"]]
        return {
            "id": batch["id"],
            "input_ids": read.ids,
            "target_ids": [ids if known else [] for ids, known in zip(written.ids, there, strict=True)],
            "cut": [a or (b and known) for a, b, known in zip(read.cut, written.cut, there, strict=True)],
        }


def _bleu_words(corpus: Corpus, data: Data) -> str:
    """The tokenizer of BLEU; `auto` is settled by the training targets: zh if most of their characters are Chinese."""
    if data.bleu != "auto":
        return data.bleu
    chinese = characters = 0
    for target in corpus.parts["train"].target:
        chinese += len(CHINESE.findall(target))
        characters += len("".join(target.split()))
    return "zh" if 2 * chinese > characters else "13a"
