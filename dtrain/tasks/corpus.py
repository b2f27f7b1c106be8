"""Read and check all rows of a recipe, number their labels, and split off missing parts. Nothing is written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dtrain.augment.words import check_tagger
from dtrain.data.corpus import Corpus, parts_to_cut
from dtrain.data.files import PARTS, Source, existing_file, matching_files, plain_file
from dtrain.data.problems import Problems
from dtrain.data.remarks import remark_on_rows, remark_on_sources
from dtrain.data.splits import stratified_split
from dtrain.errors import InputError
from dtrain.recipe.data import Data
from dtrain.tasks.classification.reading import TextReading
from dtrain.tasks.multi_label.reading import LabelSetReading
from dtrain.tasks.reading import Reading
from dtrain.tasks.regression.reading import NumberReading
from dtrain.tasks.seq2seq.reading import SidesReading
from dtrain.tasks.tagging.reading import DocumentReading

READINGS: dict[str, Reading] = {
    "classification": TextReading(),
    "pairs": TextReading(),
    "regression": NumberReading(),
    "multi_label": LabelSetReading(),
    "tagging": DocumentReading(),
    "seq2seq": SidesReading(),
}


def find_sources(data: Data) -> list[Source]:
    """Every source in the order train, valid, test, transfer, with its format; patterns and folders are expanded.

    At most one line of each file is read.

    Raises:
        InputError: a file is missing, empty or of no known format.
    """
    with data.named():
        return _find_sources(data)


def _find_sources(data: Data) -> list[Source]:
    reading = READINGS[data.task]
    problems = Problems()
    sources = []
    for part in PARTS:
        for name in getattr(data, part):
            layout, entry = data.layout(part, name), data.entry(part, name)
            own = data if entry is None or entry.format == "auto" else data.model_copy(update={"format": entry.format})
            try:
                if layout is not None and layout.beside:
                    for _, path in layout.beside:
                        plain_file(path)
                    sources.append(Source(part, name, "lines", data.encoding, layout=layout))
                    continue
                for file in matching_files(name, reading.suffixes(own)):
                    kind = reading.format_of(part, file, own)
                    sources.append(Source(part, file, kind, data.encoding, data.delimiter, data.quoting, layout))
            except InputError as error:
                problems.add(f"data.{part}: {error}")
    problems.raise_if_any()
    return sources


def source_files(data: Data) -> list[Path]:
    """The files on which the rows depend: sources and label map. A hub data set has no files here.

    Raises:
        InputError: a file is missing.
    """
    files = [path for source in find_sources(data) for path in source.files]
    files += [existing_file(name, key) for key, name in READINGS[data.task].beside(data)]
    if isinstance(data.labels, str):
        files.append(existing_file(data.labels, f"{data.key}.labels"))
    return files


def read_corpus(data: Data, seed: int) -> Corpus:
    """Read every source; `seed` decides which training rows go to a part without a file.

    Raises:
        InputError: something is wrong; one message for each kind of problem, with file and line or the recipe's key.
    """
    with data.named():
        corpus = _read_corpus(data, seed)
    corpus.remarks = [data.in_own_keys(remark) for remark in corpus.remarks]
    return corpus


def _read_corpus(data: Data, seed: int) -> Corpus:
    sources = _find_sources(data)
    files = list(dict.fromkeys(source.name for source in sources))
    reading, problems = READINGS[data.task], Problems()
    remark_on_sources(sources, problems)
    corpus = reading.read(data, sources, files, problems)
    problems.raise_if_any()
    reading.number_labels(corpus, data, problems)
    problems.raise_if_any()
    remark_on_rows(corpus.parts, problems)
    missing = parts_to_cut(data)
    if missing:
        whole, numbers = corpus.parts["train"], corpus.numbers["train"]
        for part, index in _split(numbers, missing, seed).items():
            corpus.parts[part] = whole.take(index)
            corpus.numbers[part] = numbers[index]
    ordered = [part for part in PARTS if part in corpus.parts]
    corpus.parts = {part: corpus.parts[part] for part in ordered}
    corpus.numbers = {part: corpus.numbers[part] for part in ordered}
    corpus.remarks = problems.remarks
    return corpus


def _split(numbers: np.ndarray, shares: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """`stratified_split` of the rows that have a label; the others, which cannot be scored, stay in `train`."""
    bare = numbers < 0
    if not bare.any():
        return stratified_split(numbers, shares, seed)
    labelled = np.flatnonzero(~bare)
    parts = {part: labelled[index] for part, index in stratified_split(numbers[labelled], shares, seed).items()}
    return {**parts, "train": np.union1d(parts["train"], np.flatnonzero(bare))}


def check_sources(data: Data, seed: int = 0) -> Corpus:
    """Read and check every row, as `prepare` will, without torch and without writing anything.

    Raises:
        InputError: as `read_corpus`; or the package of the tagger that `data.augment` names is not installed.
    """
    if data.augment is not None:
        with data.named():
            check_tagger(data.augment)
    return read_corpus(data, seed)
