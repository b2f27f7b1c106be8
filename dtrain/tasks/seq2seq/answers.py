"""Texts that a model generates for new texts, written as JSON lines or as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dtrain.data import EncodedSplit, Normalizer, encode_texts
from dtrain.data.dataset import PreparedData
from dtrain.data.encode import Encoder
from dtrain.data.normalization_table import table_of_texts
from dtrain.data.tokenizers import TARGET_FILE
from dtrain.data.vocabularies import load_tokenizer
from dtrain.data.written import load_writer
from dtrain.errors import InputError
from dtrain.models.decoding import Decoding, Writer
from dtrain.models.folder import CONFIG
from dtrain.quiet import quiet_transformers
from dtrain.recipe.architectures.seq2seq import written_tokens
from dtrain.recipe.data import Data, Normalization
from dtrain.runfolder import read_json
from dtrain.tasks.answers import Answers, Exported, Texts
from dtrain.tasks.seq2seq.task import as_text
from dtrain.training.workers import Workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SCRIPT = "dtrain.tasks.seq2seq.exported"


class Targets(Answers):
    """Answers of task `seq2seq`: the generated `target`.

    Args:
        beam: number of hypotheses of beam search; 1: greedy decoding.
        length_penalty: as in `Decoding`.
    """

    forms = ("jsonl", "tsv")
    formats = ("jsonl", "tsv", "csv", "parquet", "lines", "dataset")

    def __init__(self, beam: int = 1, length_penalty: float = 1.0) -> None:
        self.beam, self.length_penalty = beam, length_penalty

    def searching(self, model: Path, beam: int, length_penalty: float, option: str) -> Targets:
        if not isinstance(beam, int) or beam < 1:
            raise InputError(f"{option}: {beam} is not a positive number of hypotheses")
        tokens = written_tokens(read_json(model / CONFIG))
        if 0 < tokens < beam:
            raise InputError(f"{option}: {beam} is more than the {tokens:,} tokens that {model} can write")
        if not math.isfinite(length_penalty):
            own = "--length-penalty" if option.startswith("--") else "length_penalty"
            raise InputError(f"{own}: {length_penalty} is not a finite number")
        return Targets(beam, length_penalty)

    def reader(self, model: Path, normalize: Normalization, max_length: int) -> Callable[[Texts], EncodedSplit]:
        normalizer = Normalizer(normalize)
        with quiet_transformers():
            tokenizer = load_tokenizer(model)
        encoder = Encoder(tokenizer, max_length, pairs=False)

        def read(texts: Texts) -> EncodedSplit:
            text = [normalizer(text) for text in texts.text]
            return encode_texts(encoder, tokenizer.pad_token_id, text, None, tokenizer=model, max_length=max_length)

        return read

    def exported(
        self, model: nn.Module, place: Path, normalize: Normalization, max_length: int, texts: int
    ) -> Exported:
        with quiet_transformers():
            tokenizer, writer = load_tokenizer(place), load_writer(place)
        encoder = Encoder(tokenizer, max_length, pairs=False)
        # The encoder's copy of the tokenizer has one token more. If the model has more tokens than its tokenizer, the
        # model may generate the id of that token, so decoding needs a tokenizer without it.
        apart = (place / TARGET_FILE).is_file() or model.get_output_embeddings().weight.shape[0] > len(tokenizer)  # type: ignore[operator]
        settings = {
            "max_length": max_length,
            "pad_id": tokenizer.pad_token_id,
            "unknown_id": encoder.unknown,
            "blank_id": encoder.blank,
            "mask_id": encoder.mask,
            "reads": "tokenizer.json",
            "writes": TARGET_FILE if apart else "tokenizer.json",
            "joined": _joined(writer),
        }
        more = ((TARGET_FILE, writer.backend_tokenizer.to_str()),) if apart else ()
        return Exported(SCRIPT, settings, table_of_texts(normalize), encoder.backend.to_str(), more=more)

    def find(self, model: nn.Module, part: EncodedSplit, texts: Texts, workers: Workers) -> list[dict[str, Any]]:
        assert part.tokenizer is not None
        search = Decoding(part.max_length, self.beam, length_penalty=self.length_penalty)
        writer, tokenizer = Writer(model, decoding=search), load_writer(part.tokenizer)
        mine: dict[int, str] = {}
        for rows, (tokens,) in workers.outputs(writer, part, lambda output: (output.tokens[:, 0],)):
            mine |= {row: as_text(tokenizer, own) for row, own in zip(rows.tolist(), tokens.cpu().numpy(), strict=True)}
        found = {row: text for some in workers.gather(mine) for row, text in some.items()}
        return [{"target": found[row]} for row in range(len(part))]

    def lines(
        self, texts: Texts, answers: Iterable[Any], form: str, section: Data, data: PreparedData
    ) -> Iterator[str]:
        if form == "tsv":
            yield "\t".join(["id", "target", "text", "line"])
        for key, line, text, answer in zip(texts.ids, texts.lines, texts.text, answers, strict=True):
            if form == "tsv":
                # A tab inside a text would shift the columns.
                yield "\t".join(" ".join(str(cell).split()) for cell in (key, answer["target"], text, line))
            else:
                yield json.dumps({"id": key, "line": line, "text": text, **answer}, ensure_ascii=False)


def _joined(tokenizer: PreTrainedTokenizerFast) -> list[list[str]]:
    """The replacements (piece, instead) in a decoded text, in order, if the tokenizer cleans up tokenization spaces."""
    if not tokenizer.clean_up_tokenization_spaces or type(tokenizer.backend_tokenizer.model).__name__ == "BPE":
        return []
    marks = [[f" {mark}", mark] for mark in (".", "?", "!", ",")]
    return [*marks, [" ' ", "'"], *([f" {end}", end] for end in ("n't", "'m", "'s", "'ve", "'re"))]
