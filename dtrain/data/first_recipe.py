"""A first recipe for a data file: task, columns and labels are guessed from its first rows; comments give reasons."""

from __future__ import annotations

import csv
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dtrain.data.files import SUFFIXES, suffix_of
from dtrain.data.lines import UTF8, likely_encoding, numbered_lines, open_bytes
from dtrain.data.problems import Problems
from dtrain.data.tables import FIELD_CHARACTERS
from dtrain.errors import EXIT_DONE, InputError
from dtrain.recipe import load_recipe, write_new
from dtrain.recipe.source import parse

ROWS = 2000  # rows that guesses are based on
TEXTS = ("text", "sentence", "content", "review", "title", "query", "body", "文本", "内容")
PAIRS = (("text_a", "text_b"), ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"))
LABELS = ("label", "labels", "category", "class", "target", "sentiment", "intent", "topic", "标签", "类别")
IDS = ("id", "idx", "guid", "index")
NUMBERS = ("score", "similarity", "rating", "stars", "number", "value", "target", "label", "评分", "分数")
SETS = (*LABELS, "tags", "topics", "genres", "emotions")
SPANS = ("spans", "entities", "label", "labels", "ner")
BESIDE = {"valid": ("valid", "dev", "val", "validation"), "test": ("test",), "transfer": ("transfer", "unlabelled")}
EVALUATED = 2000  # above this number of validation rows, a comment says what scoring them costs
DECIMAL = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")
TAG = re.compile("O|[A-Z]-.+")


@dataclass
class Guess:
    """What a file seems to hold, as keys of the section `data`; `texts` and `labels` are those of the first rows."""

    task: str = "classification"
    format: str = "jsonl"
    columns: dict[str, str | int] = field(default_factory=dict)
    header: bool = True
    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    encoding: str = UTF8


def write(data: str, file: str | None = None) -> int:
    """Write a recipe for the file `data`, print its path and what to do next, and return the exit code.

    Args:
        file: the recipe to write; None: NAME.yaml, NAME being guessed from the path of `data`.

    Raises:
        InputError: the data file is missing, no labelled rows were recognised in it, or the recipe exists.
    """
    path = Path(data)
    if not path.is_file():
        raise InputError(f"{data}: is a folder, not a file" if path.is_dir() else f"{data}: no such file")
    target = Path(file) if file else Path(f"{_name(path)}.yaml")
    written = write_new(target, recipe_for(path))
    load_recipe(str(written))
    print(f"written: {written}\nRead it, then: dtrain check {written}")
    return EXIT_DONE


def recipe_for(path: Path) -> str:
    """The recipe for a data file, as YAML with comments."""
    guess = guess_file(path)
    chinese = sum(map(_is_chinese, guess.texts[:200])) * 2 > len(guess.texts[:200])
    parts = {part: found for part in BESIDE if (found := _beside(path, part))}
    lines = [
        f"# {guess.task} of {path.name}; every guess is a comment: check it, then run `dtrain check` on this file",
        "",
        f"name: {_quoted(_name(path))} # everything is written under runs/{_name(path)}",
        "data:",
        f"  task: {guess.task} # {_why_task(guess)}",
        f"  train: {_quoted(str(path))}",
    ]
    for part, found in parts.items():
        rows = _count_lines(found) if part == "valid" and guess.format != "conll" else 0
        if rows > EVALUATED:
            lines.append(
                f"  # each model is scored on all {rows:,} rows of this file after every epoch, which takes its time on"
            )
            lines.append("  # a CPU: a file with a thousand of them is enough to choose by (head -n 1000)")
        lines.append(f"  {part}: {_quoted(str(found))} # found beside it")
    if "valid" not in parts:
        lines.append("  split: {valid: 0.1} # no file for validation was found: cut from the training rows")
    if guess.encoding != UTF8:
        lines.append(f"  encoding: {guess.encoding} # it is no UTF-8, and reads well so")
    if SUFFIXES.get(suffix_of(path)) != guess.format and guess.format != "conll":
        lines.append(f"  format: {guess.format} # its lines are so; the suffix {path.suffix or '(none)'} does not tell")
    if guess.columns:
        if not guess.header:
            lines.append("  header: false # the first line looks like a row: columns are numbers from 0")
        columns = ", ".join(f"{key}: {_quoted(value)}" for key, value in guess.columns.items())
        lines.append(f"  columns: {{{columns}}}")
    if guess.task == "regression":
        lines.append(
            "  standardize: true # numbers are learnt as deviations from their mean; answers are in your own unit"
        )
    if guess.labels:
        lines.append(f"  # labels among the first {len(guess.texts)} rows: {_shown(guess.labels)}")
    length = sorted(map(len, guess.texts))[int(len(guess.texts) * 0.95)] if guess.texts else 128
    most = min(512, max(16, -(-length // 16) * 16))
    lines.append(f"  max_length: {most} # 19 of 20 texts have at most {length} characters")
    lines += _models(guess.task, chinese)
    return "\n".join(lines) + "\n"


def guess_file(path: Path) -> Guess:
    """What the first rows of a file hold.

    Raises:
        InputError: the file cannot be read, or no labelled rows were recognised in it.
    """
    try:
        with open_bytes(path) as file:
            head = file.read(1 << 20)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    encoding = UTF8
    try:
        head[: head.rfind(b"\n") + 1 or None].decode("utf-8-sig")
    except UnicodeDecodeError:
        encoding = likely_encoding(head) or UTF8
    problems = Problems()
    numbered = numbered_lines(path, str(path), problems, encoding)
    lines = [line for _, line in islice(numbered, ROWS) if line.strip() or not path.suffix.lower().endswith("json")]
    problems.raise_if_any()
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: the file is empty")
    guess = _guess_json(lines) or _guess_conll(lines) or _guess_table(path, lines)
    if guess is None:
        raise InputError(
            f"{path}: no labelled rows were recognised in it. They may be JSON objects a line, a table with a column for "
            "the label (TSV, CSV), or `character tag` lines; texts alone are for data.transfer (dtrain help data)"
        )
    guess.encoding = encoding
    return guess


def _guess_json(lines: Sequence[str]) -> Guess | None:
    records = []
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            return None
        if not isinstance(record, dict):
            return None
        records.append(record)
    keys = list(dict.fromkeys(key for record in records for key in record))
    spans = next((key for key in SPANS if any(_holds_spans(record.get(key)) for record in records)), None)
    scalar = [key for key in keys if all(isinstance(record.get(key), str | int | float | None) for record in records)]
    table = [["" if record.get(key) is None else str(record[key]) for key in scalar] for record in records]
    if spans is not None:
        text = _text_column(scalar, table)
        if text is None:
            return None
        texts = [row[scalar.index(text)] for row in table]
        return Guess("tagging", "jsonl", {"text": text, "label": spans}, texts=texts)
    sets = [key for key in keys if _holds_labels([record.get(key) for record in records])]
    if sets:
        column = next((key for name in SETS for key in sets if key.lower() == name), sets[0])
        return _guess_sets(column, [record.get(column) or [] for record in records], scalar, table)
    return _guess_columns("jsonl", scalar, table, header=True)


def _holds_spans(value: Any) -> bool:
    """Whether a value has the form of spans: a mapping by type, or a list of mappings with a start."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(inner, dict) for inner in value.values())
    return isinstance(value, list) and bool(value) and all(isinstance(e, dict) and "start" in e for e in value)


def _holds_labels(values: Sequence[Any]) -> bool:
    """Whether the values are lists of short texts or whole numbers, not all of them empty."""
    lists = [value for value in values if value is not None]
    words = [word for value in lists if isinstance(value, list) for word in value]
    whole = all(isinstance(word, str | int) and not isinstance(word, bool) for word in words)
    return bool(words) and whole and all(isinstance(v, list) for v in lists) and _short(map(str, words))


def _guess_sets(
    label: str, sets: Sequence[Sequence[Any]], columns: Sequence[str], rows: list[list[str]]
) -> Guess | None:
    """A guess for rows whose labels are lists, with the text column or the pair of texts."""
    values = {column: [row[place] for row in rows] for place, column in enumerate(columns)}
    pair = _pair_by_name(columns)
    text = pair[0] if pair else _text_column(columns, rows)
    if text is None:
        return None
    found: dict[str, str | int] = {"text": text} | ({"text_b": pair[1]} if pair else {}) | {"label": label}
    labels = sorted({str(word) for words in sets for word in words})
    return Guess("multi_label", "jsonl", found, True, _read(values, text, pair), labels)


def _guess_conll(lines: Sequence[str]) -> Guess | None:
    """A guess for lines of the form `character tag`; None where the lines have another form."""
    filled = [line.split() for line in lines if line.strip()]
    if any(len(columns) < 2 or not TAG.fullmatch(columns[-1]) for columns in filled[:200]):
        return None
    sentences = " ".join(line.split()[0] if line.strip() else "\n" for line in lines).split("\n")
    texts = [sentence.replace(" ", "") for sentence in sentences if sentence.strip()]
    return Guess("tagging", "conll", texts=texts)


def _guess_table(path: Path, lines: Sequence[str]) -> Guess | None:
    quoted = suffix_of(path) == ".csv"
    csv.field_size_limit(FIELD_CHARACTERS)
    separator = "," if quoted and "\t" not in lines[0] else "\t"
    rows = list(csv.reader(lines, delimiter=separator)) if quoted else [line.split("\t") for line in lines if line]
    width = len(rows[0])
    rows = [row for row in rows if len(row) == width]
    if width < 2:
        return None
    names = [name.strip() for name in rows[0]]
    of_pairs = (name for pair in PAIRS for name in pair)
    known = {name.lower() for name in names} & {*TEXTS, *LABELS, *NUMBERS, *IDS, *of_pairs}
    header = bool(known) and len(set(names)) == width
    columns: list[str | int] = [*names] if header else [*range(width)]
    return _guess_columns("csv" if separator == "," else "tsv", columns, rows[header:], header)


def _guess_columns(kind: str, columns: Sequence[str | int], rows: list[list[str]], header: bool) -> Guess | None:
    """The columns of the label or number, the text, a second text and the id; None where no label or text is found.

    A label is recognised by the column's name, else by few different values; the text by name, else by its length.
    """
    if not rows or not columns:
        return None
    values = {column: [row[place] for row in rows] for place, column in enumerate(columns)}
    few = [c for c in columns if 2 <= len(set(values[c])) <= max(2, min(200, len(rows) // 4)) and _short(values[c])]
    label = next((c for name in LABELS for c in few if str(c).lower() == name), None)
    decimal = [column for column in columns if _is_decimal(values[column])]
    number = next((c for name in NUMBERS for c in decimal if str(c).lower() == name), None)
    if number is None and len(decimal) == 1 and label in (None, decimal[0]):
        number = decimal[0]
    if number is not None:
        label = number
    label = label if label is not None else min(few, key=lambda c: len(set(values[c])), default=None)
    if label is None:
        return None
    rest = [column for column in columns if column != label and column not in few]
    names = {str(column).lower(): column for column in columns}
    pair = _pair_by_name(columns)
    if pair is None and not header:
        texts = [c for c in rest if sum(map(len, values[c])) >= 4 * len(rows)]
        pair = (texts[0], texts[1]) if len(texts) == 2 else None
    text = pair[0] if pair else _text_column(rest or [c for c in columns if c != label], rows, columns)
    if text is None:
        return None
    found: dict[str, str | int] = {"text": text}
    if pair:
        found["text_b"] = pair[1]
    found["label"] = label
    row_id = next((names[name] for name in IDS if name in names), None)
    if row_id is not None and len(set(values[row_id])) == len(rows):
        found["id"] = row_id
    read = _read(values, text, pair)
    if number is not None:
        return Guess("regression", kind, found, header, read)
    return Guess("pairs" if pair else "classification", kind, found, header, read, sorted(set(values[label])))


def _pair_by_name(columns: Sequence[Any]) -> tuple[Any, Any] | None:
    names = {str(column).lower(): column for column in columns}
    return next(((names[a], names[b]) for a, b in PAIRS if a in names and b in names), None)


def _read(values: Mapping[Any, list[str]], text: Any, pair: tuple[Any, Any] | None) -> list[str]:
    """The text that a model reads of each row; for a pair, both texts joined."""
    return values[text] if pair is None else [a + b for a, b in zip(values[text], values[pair[1]], strict=True)]


def _is_decimal(values: Sequence[str]) -> bool:
    """Whether a column holds decimal numbers: at least half of the rows have one, three differ, some are not whole."""
    filled = [value.strip() for value in values if value.strip()]
    if 2 * len(filled) < len(values) or not all(DECIMAL.fullmatch(value) for value in filled):
        return False
    numbers = set(map(float, filled))
    return len(numbers) > 2 and any(not number.is_integer() for number in numbers)


def _short(values: Iterable[str]) -> bool:
    return all(0 < len(value) <= 40 for value in values)


def _text_column(candidates: Sequence[Any], rows: list[list[str]], columns: Sequence[Any] | None = None) -> Any:
    """The text column among `candidates`: by name, else the one with the longest values."""
    names = {str(column).lower(): column for column in candidates}
    for name in TEXTS:
        if name in names:
            return names[name]
    places = list(columns if columns is not None else candidates)
    return max(candidates, key=lambda c: sum(len(row[places.index(c)]) for row in rows), default=None)


def _beside(path: Path, part: str) -> Path | None:
    """The file of another part next to a training file, named like it: dev.char.bmes beside train.char.bmes."""
    if "train" not in path.name:
        return None
    found = (path.with_name(path.name.replace("train", word, 1)) for word in BESIDE[part])
    return next((other for other in found if other.is_file()), None)


def _count_lines(path: Path) -> int:
    with open_bytes(path) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _name(path: Path) -> str:
    """A name for the run: that of the file, or of its folder where the file is called train, training or data."""
    stem = path.name.split(".")[0]
    word = path.resolve().parent.name if stem.lower() in ("train", "training", "data") else stem
    return re.sub(r"[^A-Za-z0-9._-]+", "_", word).strip("._-") or "first"


def _why_task(guess: Guess) -> str:
    reasons = {
        "classification": f"one text and {len(guess.labels)} labels",
        "pairs": f"two texts and {len(guess.labels)} labels",
        "regression": f"{'two texts' if 'text_b' in guess.columns else 'one text'} and a number with decimals",
        "multi_label": f"lists of labels, {len(guess.labels)} different ones",
        "tagging": "entities with their places" if guess.format == "jsonl" else "a tag on each line",
    }
    return reasons[guess.task]


def _is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def _shown(labels: Sequence[str]) -> str:
    labels = [" ".join(label.split()) for label in labels]
    return ", ".join(labels[:12]) + (f" and {len(labels) - 12} more" if len(labels) > 12 else "")


def _quoted(value: str | int) -> str:
    """A value as a YAML scalar, in quotes where it needs them."""
    if isinstance(value, int) or (re.fullmatch(r"[A-Za-z_./][\w./-]*", value, re.ASCII) and parse(value) == value):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _models(task: str, chinese: bool) -> list[str]:
    pretrained = "bert-base-chinese" if chinese else "bert-base-uncased"
    if task == "tagging":
        teacher = f"{{type: tagger, encoder: {{type: bert, pretrained: {pretrained}}}, lstm: 128}}"
        rates, student = "{type: adamw, lr: 5.0e-4, modules: {encoder: 5.0e-5}}", "{type: idcnn}"
        # The same as the teachers of the recipe resume_ner.
        alone = ("{type: tagger, embedding: 256, lstm: 256}", 8, "{type: adamw, lr: 2.0e-3}")
    else:
        teacher, rates = f"{{type: bert, pretrained: {pretrained}}}", "{type: adamw, lr: 2.0e-5}"
        student = "{type: bilstm, embedding: 256, hidden: 256, dropout: 0.5}"
        alone = ("{type: textcnn}", 8, "{type: adamw, lr: 1.0e-3}")
    return [
        "",
        "# learns from the labels; its outputs on every row become the knowledge that students learn from",
        "teachers:",
        "  - name: bert",
        f"    # a pretrained BERT, as the texts are {'Chinese' if chinese else 'not Chinese'}; the first run downloads it. Without a network, let",
        "    # `pretrained` name a folder with its config.json, model.safetensors and vocab.txt, copied from elsewhere; or take a",
        "    # smaller teacher that needs no download, with these three lines in place of those below:",
        f"    #   model: {alone[0]}",
        f"    #   epochs: {alone[1]}",
        f"    #   optimizer: {alone[2]}",
        f"    model: {teacher}",
        "    epochs: 3",
        f"    optimizer: {rates}",
        "",
        "# the same small model twice: taught, and from the labels alone, to see what the teacher brings",
        "students:",
        "  - name: distilled",
        f"    model: {student}",
        "    epochs: 10",
        "  - name: from_scratch",
        "    teachers: []",
        f"    model: {student}",
        "    epochs: 10",
    ]
