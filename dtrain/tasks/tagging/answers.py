"""A tagger's answers: the entities in each text.

pieces of texts -> fixed batches over ranks -> best tags and their probabilities -> pieces joined to texts -> lines
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dtrain.data import EncodedSplit, encode_documents
from dtrain.data.characters import CharacterEncoder
from dtrain.data.dataset import PreparedData
from dtrain.data.normalization_table import table_of_characters
from dtrain.data.pieces import FULL_STOPS
from dtrain.data.problems import RowError
from dtrain.data.schemes import Span, number_tags, write_tags
from dtrain.data.vocabularies import load_tokenizer
from dtrain.errors import InputError, suggest
from dtrain.metrics.spans_text import answer_spans
from dtrain.quiet import quiet_transformers
from dtrain.recipe.data import Data, Normalization
from dtrain.runfolder import read_json
from dtrain.tasks.answers import Answers, Exported, Texts, model_labels
from dtrain.tasks.tagging.spans import EXCLUSIVE, Entities, GivenSpan
from dtrain.training.workers import Workers

BLANK = "\u2581"  # replaces white space, which would be read as the end of a column
TaggedPiece = tuple[np.ndarray, np.ndarray]  # the tags of a piece's characters, and their log-probabilities


class Spans(Answers):
    """Answers of task `tagging`: a list of entities, each with text, type, start, end (exclusive) and score."""

    forms = ("jsonl", "tsv", "clue", "conll")
    formats = ("jsonl", "lines", "conll")

    def reader(self, model: Path, normalize: Normalization, max_length: int) -> Callable[[Texts], EncodedSplit]:
        with quiet_transformers():  # transformers warns about model types of this package
            tokenizer = load_tokenizer(model)
        encoder = CharacterEncoder(tokenizer, normalize)
        types = {name: number for number, name in enumerate(self.reads_privileged(model))}

        def read(texts: Texts) -> EncodedSplit:
            beside = numbered(texts, types, model) if types else None
            return encode_documents(encoder, tokenizer.pad_token_id, texts.text, max_length, beside)

        return read

    def reads_privileged(self, model: Path) -> list[str]:
        section = read_json(model / "config.json").get("privileged")
        found: list[str] = section["types"] if section else []
        return found

    def types(self, model: nn.Module) -> list[str]:
        return _types(model)

    def exported(
        self, model: nn.Module, place: Path, normalize: Normalization, max_length: int, texts: int
    ) -> Exported:
        if self.reads_privileged(place):
            raise InputError(
                f"export: {place}: reads annotations beside the text, which an exported model is not given; export a student"
            )
        with quiet_transformers():
            tokenizer = load_tokenizer(place)
        encoder = CharacterEncoder(tokenizer, normalize)
        settings = {
            "types": _types(model),
            "max_length": max_length,
            "full_stops": "".join(sorted(FULL_STOPS)),
            "pad_id": tokenizer.pad_token_id,
            "unknown_id": encoder.unknown,
            "before": encoder.before,
            "after": encoder.after,
        }
        table = table_of_characters(normalize)
        return Exported("dtrain.tasks.tagging.exported", settings, table, tokenizer.backend_tokenizer.to_str())

    def find(self, model: nn.Module, part: EncodedSplit, texts: Texts, workers: Workers) -> list[list[dict[str, Any]]]:
        assert part.documents is not None
        types = _types(model)
        mine: dict[int, TaggedPiece] = {}
        for rows, (tags, sure) in workers.outputs(model, part, lambda output: best_tags(model, output)):
            for row, row_tags, row_sure in zip(rows.tolist(), tags.cpu().numpy(), sure.cpu().numpy(), strict=True):
                mine[row] = row_tags[: part.characters[row]], row_sure[: part.characters[row]]
        found = {row: piece for pieces in workers.gather(mine) for row, piece in pieces.items()}
        pieces: list[list[TaggedPiece]] = [[] for _ in texts.text]
        for row, document in enumerate(part.documents.tolist()):
            pieces[document].append(found[row])
        return [_joined(text, own, types) for text, own in zip(texts.text, pieces, strict=True)]

    def lines(
        self, texts: Texts, answers: Iterable[Any], form: str, section: Data, data: PreparedData
    ) -> Iterator[str]:
        """As the base class, in one of these forms:

        `jsonl`: one line for each text with its spans, which can be read as training data (`columns: {label: spans}`);
        ends are inclusive or exclusive as in the recipe's own files.
        `tsv`: one line for each span; ends are exclusive.
        `clue`: one line for each text in the format of CLUENER.
        `conll`: one line for each character with its tag in the user's scheme, and a blank line after each text.
        """
        last = 1 if data.info.get("span_end") == "inclusive" else 0  # subtracted from the exclusive end
        if form == "tsv":
            yield "\t".join(["id", "type", "start", "end", "score", "text", "line"])
        for key, line, text, spans in zip(texts.ids, texts.lines, texts.text, answers, strict=True):
            if form == "jsonl":
                ends = [{**span, "end": span["end"] - last} for span in spans]
                yield json.dumps({"id": key, "line": line, "text": text, "spans": ends}, ensure_ascii=False)
            elif form == "tsv":
                for span in spans:
                    cells = [key, span["type"], span["start"], span["end"], f"{span['score']:.6f}", span["text"], line]
                    # A tab inside a text would shift the columns.
                    yield "\t".join(" ".join(str(cell).split()) for cell in cells)
            elif form == "clue":
                yield _clue_line(key, spans)
            else:
                found = [Span(span["start"], span["end"], span["type"]) for span in spans]
                for character, tag in zip(text, write_tags(found, len(text), data.scheme), strict=True):
                    yield f"{BLANK if character.isspace() else character} {tag}"
                yield ""


def _types(model: nn.Module) -> list[str]:
    return [name.removeprefix("B-") for name in model_labels(model)[1::4]]


def numbered(texts: Texts, types: Mapping[str, int], model: Path) -> list[np.ndarray]:
    """The annotations of each text as tag numbers, integer [characters]; of nested annotations the outer one counts.

    Args:
        types: the numbers of the types that the model knows, by name.
        model: the model's folder, for messages.

    Raises:
        InputError: there are no annotations; one has a type that the model does not know, or is outside its text; or
            two of them overlap.
    """
    if len(texts.privileged) != len(texts):
        raise InputError(
            f"{model}: reads annotations beside each text ({', '.join(types)}); give the entities of each in `privileged`"
        )
    entities, found = Entities(EXCLUSIVE), []
    for line, text, spans in zip(texts.lines, texts.text, texts.privileged, strict=True):
        for span in spans:
            if span.type not in types:
                hint, allowed = suggest(span.type, list(types)), ", ".join(types)
                raise InputError(f"line {line}: {model} knows no annotation {span.type!r}{hint} (allowed: {allowed})")
        try:
            kept = entities.of("", [GivenSpan(*span, None) for span in spans], text)
        except RowError as error:
            raise InputError(f"line {line}: privileged: {error}") from None
        found.append(number_tags(kept, len(text), types))
    return found


def _clue_line(key: str | int, spans: list[dict[str, Any]]) -> str:
    """A line in the format of CLUENER: places by type and text; ends are inclusive."""
    labels: dict[str, dict[str, list[list[int]]]] = {}
    for span in spans:
        places = labels.setdefault(span["type"], {}).setdefault(span["text"], [])
        places.append([span["start"], span["end"] - 1])
    return json.dumps({"id": key, "label": labels}, ensure_ascii=False)


def best_tags(model: nn.Module, output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The best tags, int64 [B, N] (-1 at padding), and log p(tag | text) of each, [B, N]."""
    tags = model.decode(output.logits, output.mask)  # type: ignore[operator]
    marginals = model.log_marginals(output.logits, output.mask)  # type: ignore[operator]
    return tags, marginals.gather(2, tags.clamp(min=0)[:, :, None])[:, :, 0]


def _joined(text: str, pieces: list[TaggedPiece], types: Sequence[str]) -> list[dict[str, Any]]:
    tags = np.concatenate([tags for tags, _ in pieces])
    sure = np.concatenate([sure for _, sure in pieces])
    # The model read an empty text as one unknown character, whose tag is dropped here.
    answers = answer_spans(text, tags[: len(text)], types, sure[: len(text)])
    for answer in answers:
        answer["score"] = round(answer["score"], 6)
    return answers
