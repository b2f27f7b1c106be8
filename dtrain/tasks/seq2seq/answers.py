"""What a model writes for new texts, as lines of JSON or of a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from dtrain.data import EncodedSplit, Normalizer, encode_texts
from dtrain.data.dataset import PreparedData
from dtrain.data.encode import Encoder
from dtrain.data.vocabularies import load_tokenizer
from dtrain.data.written import load_writer
from dtrain.models.decoding import Decoding, Writer
from dtrain.quiet import quiet_transformers
from dtrain.recipe.data import Data, Normalization
from dtrain.tasks.answers import Answers, Texts
from dtrain.tasks.seq2seq.task import as_text
from dtrain.training.workers import Workers


class Targets(Answers):
    """Of task `seq2seq`: an answer is the `target`, written greedily."""

    forms = ("jsonl", "tsv")
    formats = ("jsonl", "tsv", "csv", "parquet", "lines", "dataset")

    def reader(self, model: Path, normalize: Normalization, max_length: int) -> Callable[[Texts], EncodedSplit]:
        normalizer = Normalizer(normalize)
        with quiet_transformers():
            tokenizer = load_tokenizer(model)
        encoder = Encoder(tokenizer, max_length, pairs=False)

        def read(texts: Texts) -> EncodedSplit:
            text = [normalizer(text) for text in texts.text]
            return encode_texts(encoder, tokenizer.pad_token_id, text, None, tokenizer=model, max_length=max_length)

        return read

    def find(self, model: nn.Module, part: EncodedSplit, texts: Texts, workers: Workers) -> list[dict[str, Any]]:
        assert part.tokenizer is not None
        writer, tokenizer = Writer(model, decoding=Decoding(part.max_length)), load_writer(part.tokenizer)
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
