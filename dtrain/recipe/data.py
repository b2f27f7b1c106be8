"""The section `data`: where rows come from and what is done to them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dtrain.errors import InputError
from dtrain.recipe.sides import FileEntry, Files, Layout, TextColumn, check_side, numbered
from dtrain.recipe.values import Closed, Column, FilePath, Paths, Probability, Share, TextEncoding
from dtrain.tasks.rules import keys_of_others, rules_of, task_names


def _a_task(name: str) -> str:
    if name not in task_names():
        *others, last = map(repr, task_names())
        expected = f"{', '.join(others)} or {last}"
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
    return name


TaskName = Annotated[str, AfterValidator(_a_task)]


class Columns(Closed):
    """The columns of a row's parts: names (JSON keys, header names) or numbers from 0 (where there is no header)."""

    # column of the text; if a row has several sides, of which each model `reads` one, a mapping from the name of each
    # side to its column, such as {en: english, zh: chinese}
    text: TextColumn = "text"
    # column of the second text: for task pairs; for regression and multi_label where a row is a pair
    text_b: Column | None = None
    # column of the label; for regression of the number, for multi_label of the labels, for tagging in JSON lines of the
    # spans
    label: Column = "label"
    id: Column | None = None  # column of your own row ids; null: a row is identified by its file and line
    # whether a span's end is the position of its last character (inclusive) or one more (exclusive); auto: found from
    # the data
    span_end: Literal["auto", "inclusive", "exclusive"] = "auto"
    # for seq2seq: column of the text that is read, or a mapping of sides as for `text`; default: source
    source: TextColumn | None = None
    target: Column | None = None  # for seq2seq: column of the text that is written; default: target
    # for tagging: column of annotations that a teacher may read beside the text (its `model.privileged`): spans, or tags,
    # one for each character
    privileged: Column | None = None
    _sides: dict[str, Column] = PrivateAttr({})  # the column of each side, if a row has several
    _sides_key: str = PrivateAttr("text")  # the key that gave the sides

    @property
    def sides(self) -> dict[str, Column]:
        """The column of each side by its name; empty if a row has one text."""
        return self._sides

    @model_serializer(mode="wrap")
    def without_what_few_have(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys that are not given, so that fingerprints are the same as before these keys existed."""
        values: dict[str, Any] = handler(self)
        if self._sides:
            values[self._sides_key] = dict(self._sides)
        added = ("source", "target", "privileged")
        return {key: value for key, value in values.items() if value is not None or key not in added}

    def with_sides(self) -> Columns:
        """A copy for task seq2seq, in which `text` is the column that is read and `label` the one that is written.

        Raises:
            ValueError: `text` or `label` is given and names another column, or one column is read and written.
        """
        sides: dict[str, Column] = {
            "source": "source" if self.source is None else self.source,
            "target": "target" if self.target is None else self.target,
        }
        for key, side in (("text", "source"), ("label", "target")):
            if key in self.model_fields_set and getattr(self, key) != sides[side]:
                raise ValueError(f"columns.{key}: is called columns.{side} for task 'seq2seq'")
        if sides["source"] == sides["target"]:
            raise ValueError(f"columns.target: column {sides['target']!r} is given two roles")
        return self.model_copy(update={**sides, "text": sides["source"], "label": sides["target"]})

    def key_of(self, role: str) -> str:
        """The recipe's key for the role `text`, `text_b`, `label` or `id`; for seq2seq, `source` and `target`."""
        return role if self.source is None else {"text": "source", "label": "target"}.get(role, role)

    @model_validator(mode="after")
    def one_role_each(self) -> Columns:
        found: list[Any] = []  # the columns of sides
        for key, plain in (("source", None), ("text", "text")):
            value: Any = getattr(self, key)
            if isinstance(value, dict):
                for name in value:
                    check_side(name)
                self._sides, self._sides_key = value, key
                found += dict.fromkeys(value.values())  # several sides may be the same column
                setattr(self, key, plain)
        text = [] if found else [self.text]
        others = (self.text_b, self.label, self.id, self.privileged)
        given = [column for column in (*found, *text, *others) if column is not None]
        twice = [column for column in given if given.count(column) > 1]
        if twice:
            raise ValueError(f"column {twice[0]!r} is given two roles")
        return self


class Split(Closed):
    """Shares of the training rows, stratified by label, that become validation and test rows where there is no file."""

    valid: Share = 0.1  # share for validation, where data.valid is empty
    test: Share = 0.0  # share for the test, where data.test is empty

    @model_validator(mode="after")
    def leaves_something(self) -> Split:
        if self.valid + self.test >= 1.0:
            raise ValueError(f"valid + test is {self.valid + self.test:g}; it must leave training rows (be under 1)")
        return self


class Normalization(Closed):
    """What is done to every text, in this order; it is part of the fingerprints of data and stores."""

    model_config = ConfigDict(frozen=True)  # hashable: compared by value

    simplify: bool = True  # traditional to simplified Chinese
    half_width: bool = True  # full-width to half-width forms
    control: bool = True  # drop control and zero-width characters
    whitespace: bool = True  # runs of white space to one space, ends stripped
    lower: bool = True  # lower case


class Vocabulary(Closed):
    """The students' vocabulary, counted on training and transfer text or given as a file."""

    unit: Literal["character", "word"] = "character"  # what a token of a student is
    min_count: PositiveInt = 3  # rarer tokens are read as [UNK]
    max_size: Annotated[int, Field(ge=8)] | None = None  # keep at most this many of the most frequent tokens; null: all
    file: FilePath | None = None  # a file with one token per line, in place of counting


class Augment(Closed):
    """Synthetic transfer rows, made from training rows (augment/, Tang et al. 2019) and labelled by teachers only."""

    n_iter: PositiveInt = 20  # candidates generated from each training row
    p_mask: Probability = 0.1  # probability that a word is masked
    # probability that a word is replaced by one of the same part of speech; default: 0.1 with a tagger, else 0
    p_pos: Probability | None = None
    p_ng: Probability = 0.25  # probability that a text is cut down to one of its n-grams
    max_ngram: PositiveInt = 5  # words of the longest n-gram
    # finds words and their parts of speech: jieba for Chinese, nltk for English
    tagger: Literal["jieba", "nltk"] | None = None

    @model_validator(mode="after")
    def can_be_done(self) -> Augment:
        if self.p_pos is None:
            self.p_pos = 0.1 if self.tagger else 0.0
        if self.p_mask + self.p_pos > 1:
            raise ValueError(f"p_pos: p_mask + p_pos is {self.p_mask + self.p_pos:g}; a word has one fate (at most 1)")
        if not self.p_mask and not self.p_pos and not self.p_ng:
            raise ValueError("p_mask: with p_pos and p_ng it is 0, and no row would be made up")
        if self.p_pos and self.tagger is None:
            raise ValueError("p_pos: parts of speech need a tagger: jieba for Chinese, nltk for English")
        return self


class Targets(Closed):
    """Files of targets, one for each file of sources; each line is the target of the same line of that file."""

    train: Paths = []  # files with the targets of the lines of train
    valid: Paths = []  # those of valid
    test: Paths = []  # those of test

    @field_validator("train", "valid", "test", mode="before")
    @classmethod
    def one_or_many(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value


DATA = "data"  # the key of a recipe's only section of rows


class Data(Closed):
    """Where the rows are, and what is done to their texts."""

    _key: str = PrivateAttr(DATA)
    _given: dict[str, list[str | FileEntry]] = PrivateAttr({})  # what is given for parts with entries
    # classification: classes of texts; pairs: classes of pairs of texts; regression: numbers of texts or pairs;
    # multi_label: any number of labels of texts or pairs; tagging: entities in texts; seq2seq: a text for each text,
    # such as its translation
    task: TaskName = "classification"
    # labelled files: one path or several, patterns and folders included; if rows have several sides, also entries with
    # columns of their own, such as {path: pairs.tsv, columns: {en: 0, zh: 1}}
    train: Files
    valid: Files = []  # labelled files on which the best weights of each model are chosen; left out: cut from train
    test: Files = []  # labelled files that are scored once, for the report
    transfer: Files = []  # unlabelled files, on which students learn the teachers' outputs
    augment: Augment | None = None  # synthetic transfer rows, made from training rows; left out: none
    # how the files are read; auto: by their suffix
    format: Literal["auto", "jsonl", "tsv", "csv", "parquet", "lines", "dataset", "conll"] = "auto"
    # text encoding of the files above and of a file of labels: utf-8, gb18030, big5, utf-16, ...
    encoding: TextEncoding = "utf-8"
    # separator of the columns of tables; auto: a tab in .tsv, a comma in .csv
    delimiter: Literal["auto", ",", ";", "|", "tab"] = "auto"
    # quotation marks around a column of a table: markup (quotes) or part of the text (none); auto: quotes in .csv, none in .tsv
    quoting: Literal["auto", "quotes", "none"] = "auto"
    # scheme of the tags in CoNLL files; auto: found from the tags
    scheme: Literal["auto", "iob1", "bio", "bioes", "bmes", "bilou"] = "auto"
    header: bool = True  # whether the first line of a table names its columns; otherwise columns are numbers from 0
    columns: Columns = Columns()  # columns of a row's parts: names (JSON keys, header) or numbers from 0 (no header)
    # the labels in their order: a list, or a file with one per line; default: those of the training rows, sorted
    labels: list[str] | FilePath | None = None
    # for multi_label: what separates the labels of a text, unless they are a JSON list; blank: white space
    separator: Annotated[str, Field(min_length=1)] = ","
    # for multi_label: a label is predicted if its probability is above this
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    # for seq2seq: plain files with the targets of the lines of train, valid and test, which are then plain files of
    # sources; left out: source and target are columns of one file
    targets: Targets | None = None
    # for seq2seq: how BLEU splits a text into words (sacrebleu's `tokenize`): 13a for most languages, zh or char for
    # Chinese; auto: zh if more than half of the characters of the training targets are Chinese, else 13a
    bleu: Literal["auto", "13a", "intl", "zh", "char", "none"] = "auto"
    # for regression: train on numbers less their mean, over their standard deviation, both of the training rows; scores
    # and predictions are in the unit of the data
    standardize: bool = False
    split: Split = Split()  # shares of the training rows for parts without a file
    normalize: Normalization = Normalization()  # what is done to every text
    vocabulary: Vocabulary = Vocabulary()  # the students' vocabulary
    # the most tokens (for tagging, characters) of a text; longer texts are cut off, or for tagging cut into pieces
    max_length: Annotated[int, Field(ge=4, le=8192)] = 128
    workers: PositiveInt | Literal["auto"] = "auto"  # processes that encode rows; auto: by the number of cores

    @field_validator("train", "valid", "test", "transfer", mode="before")
    @classmethod
    def one_or_many(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str | dict | FileEntry) else value

    @model_serializer(mode="wrap")
    def with_entries(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write entries where they were given; without any, the section is the same as before entries existed."""
        values: dict[str, Any] = handler(self)
        for part, given in getattr(
            self, "_given", {}
        ).items():  # also called for the missing `data` of a recipe with `tasks`
            if part in values:
                values[part] = [each if isinstance(each, str) else each.model_dump(mode="json") for each in given]
        return values

    @field_validator("labels")
    @classmethod
    def labels_differ(cls, value: list[str] | str | None, info: ValidationInfo) -> list[str] | str | None:
        if isinstance(value, list):
            rules = rules_of(info.data.get("task", "classification"))
            if rules.tags:
                if not value or any(not name or name != name.strip("- ") for name in value):
                    raise ValueError("needs at least one entity type, none empty or with a dash or blank around it")
            elif len(value) < rules.least_labels:
                raise ValueError(f"{len(value)} label(s) given; {rules.name} needs at least {rules.least_labels}")
            twice = sorted({label for label in value if value.count(label) > 1})
            if twice:
                raise ValueError(f"label {twice[0]!r} is given twice")
        return value

    @model_validator(mode="after")
    def consistent(self) -> Data:
        if not self.train:
            raise ValueError("train: no file given")
        rules = rules_of(self.task)
        self._take_entries()
        for key, why in self._without_sides().items() if self.sides else ():
            raise ValueError(f"{key}: {why}")
        if rules.two_texts and self.columns.text_b is None:
            raise ValueError(f"columns.text_b: must name the second text for task {self.task!r}")
        if rules.two_texts is False and self.columns.text_b is not None:
            raise ValueError("columns.text_b: is only for task 'pairs'")
        for part in ("train", "valid", "test") if self.targets is not None else ():
            own, beside = getattr(self, part), getattr(self.targets, part)
            if len(own) != len(beside):
                raise ValueError(
                    f"targets.{part}: {len(beside)} file(s) for the {len(own)} of {part}: name one for each"
                )
        if rules.writes:
            self.columns = self.columns.with_sides()
        elif self.columns.source is not None or self.columns.target is not None:
            raise ValueError("columns.source and columns.target: are only for task 'seq2seq'")
        if self.columns.privileged is not None and not rules.tags:
            raise ValueError("columns.privileged: is only for task 'tagging'")
        if self.format not in rules.formats:
            fit = [name for name in task_names() if self.format in rules_of(name).formats]
            if len(fit) == 1:
                raise ValueError(f"format: {self.format!r} is only for task {fit[0]!r}")
            allowed = ", ".join(rules.formats)
            raise ValueError(f"format: {self.format!r} is not for task {self.task!r} (allowed: {allowed})")
        for key in sorted(keys_of_others(self.task) & self.model_fields_set):
            if getattr(self, key) != type(self).model_fields[key].default:  # a resolved recipe gives every key
                owners = ", ".join(repr(name) for name in task_names() if key in rules_of(name).keys)
                raise ValueError(f"{key}: is only for task {owners}")
        if self.labels is not None and not rules.least_labels:
            raise ValueError(f"labels: is not for task {self.task!r}, whose rows have none")
        if self.scheme != "auto" and not rules.tags:
            raise ValueError(f"scheme: {self.scheme!r} is only for task 'tagging'")
        if rules.tags and self.vocabulary.unit != "character":
            raise ValueError(f"vocabulary.unit: task {self.task!r} reads characters")
        if self.augment is not None and "augment" in rules.excluded:
            raise ValueError(f"augment: is not for task {self.task!r}")
        default = not self.valid and not self.test and "split" not in self.model_fields_set
        if default and rules.split != (self.split.valid, self.split.test):
            self.split = Split(valid=rules.split[0], test=rules.split[1])
        return self

    def __eq__(self, other: object) -> bool:
        """Sections are equal whatever their keys in the recipe."""
        return isinstance(other, Data) and self.__dict__ == other.__dict__ and self._given == other._given

    __hash__ = None  # type: ignore[assignment]

    # --- several sides of a row --------------------------------------------------------------------------

    def _take_entries(self) -> None:
        """Put the paths of entries in their places, and keep the entries in `_given`."""
        for part in ("train", "valid", "transfer", "test"):  # files to learn from name the sides first
            given: list[Any] = getattr(self, part)
            if any(isinstance(each, FileEntry) for each in given):
                self._given = {**self._given, part: list(given)}
                setattr(self, part, [p for each in given for p in ([each] if isinstance(each, str) else each.paths)])

    def _without_sides(self) -> dict[str, str]:
        """The keys that cannot be used with rows of several sides, each with the reason."""
        rules = rules_of(self.task)
        found = {}
        if rules.tags or rules.two_texts:
            found["columns.text"] = f"task {self.task!r} reads one text or pair a row, not several sides"
        if self.columns.text_b is not None:
            found["columns.text_b"] = "not together with several sides of a row"
        for key in ("augment", "targets"):
            if getattr(self, key) is not None:
                found[key] = "not together with several sides of a row"
        for part, given in self._given.items():
            twice = [path for path in getattr(self, part) if getattr(self, part).count(path) > 1]
            if twice:  # entries are found by their paths
                found[part] = f"{twice[0]} is named twice"
            for number, each in enumerate(given):
                strange = "label" if rules.writes else "target"
                if isinstance(each, FileEntry) and strange in each.columns:
                    found[f"{part}.{number}.columns"] = f"{strange!r} is not for task {self.task!r}"
        return found

    @property
    def sides(self) -> list[str]:
        """The names of the sides that rows may have; none if a row is one text, or one pair of texts."""
        entries = [each for given in self._given.values() for each in given if isinstance(each, FileEntry)]
        return list(dict.fromkeys([*self.columns.sides, *(side for entry in entries for side in entry.sides)]))

    def paths(self, part: str) -> list[str]:
        """All paths that the recipe gives for a part, including all of files that belong together line by line."""
        found: list[str] = []
        for each in self._given.get(part, getattr(self, part)):
            whole = isinstance(each, FileEntry) and isinstance(each.path, dict)
            found += [each] if isinstance(each, str) else each.path.values() if whole else each.paths
        return found

    def entry(self, part: str, path: str) -> FileEntry | None:
        """The entry that a path of a part belongs to; None for a plain path."""
        for each in self._given.get(part, ()):
            if isinstance(each, FileEntry) and path in each.paths:
                return each
        return None

    def layout(self, part: str, path: str) -> Layout | None:
        """The columns of the sides in the rows of a path; None if rows have no sides."""
        if not self.sides:
            return None
        entry = self.entry(part, path)
        if entry is None:
            columns = {side: self.columns.sides.get(side, side) for side in self.sides}
            return Layout(tuple(columns.items()), False, self.header, self.columns.label, self.columns.id)
        own = entry.columns
        label: Column | None = own.get("target") if rules_of(self.task).writes else own.get("label")
        return Layout(
            columns=tuple((side, own.get(side, side)) for side in entry.sides),
            whole=True,
            header=not numbered(own),
            label=self.columns.label if label is None else label,
            id=own.get("id", self.columns.id),
            beside=tuple(entry.path.items()) if isinstance(entry.path, dict) else (),
        )

    def of_side(self, side: str) -> Data:
        """The section for other files, read by a model that reads one side only: that side is the text.

        Its column is that of the first file with the side, in the order test, valid, train, transfer; a column that has
        a name is preferred.
        """
        known: list[Column] = [self.columns.sides[side]] if side in self.columns.sides else []
        for part in ("test", "valid", "train", "transfer"):
            for each in self._given.get(part, getattr(self, part)):
                columns = each.columns if isinstance(each, FileEntry) else {side: side}
                known += [columns[side]] if side in columns else []
        column = next((found for found in known if isinstance(found, str)), known[0] if known else side)
        alone = self.columns.model_copy(update={"text": column})
        alone._sides = {}
        found = self.model_copy(update={"columns": alone, "header": not isinstance(column, int)})
        found._given = {}
        return found

    @property
    def key(self) -> str:
        """The key of the section in the recipe: `data`, or `tasks.NAME`."""
        return self._key

    def stands_at(self, key: str) -> None:
        """Set the key of the section in the recipe."""
        self._key = key

    def in_own_keys(self, text: str) -> str:
        """A message about keys of `data`, with the key of this section (such as `tasks.NAME`) in place of `data`."""
        return text if self._key == DATA else _keys_of_data().sub(f"{self._key}.\\1", text)

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """A context in which errors that name `data.train` and the like name the keys of this section instead."""
        try:
            yield
        except InputError as error:
            raise InputError([self.in_own_keys(problem) for problem in error.problems]) from error.__cause__


@cache
def _keys_of_data() -> re.Pattern[str]:
    """Matches `data.KEY` as a word of its own, not as part of a path or of the name of a file."""
    keys = "|".join(Data.model_fields)
    return re.compile(rf"(?<![\w./\\-])data\.({keys})(?![\w/\\-]|\.(?:jsonl?|tsv|csv|txt|parquet)\b)")
