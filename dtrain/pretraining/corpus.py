"""Documents of a corpus as the user's files hold them, and the rows that must not be among them."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from dtrain.data.files import CORPUS, HUB, SUFFIXES, Source, existing_file, is_dataset, resolve_path, suffix_of
from dtrain.data.lines import numbered_lines
from dtrain.data.normalize import Normalizer
from dtrain.data.problems import Problems
from dtrain.data.records import read_records
from dtrain.data.sources import text_of
from dtrain.data.tokenizers import bert_vocabulary
from dtrain.errors import InputError
from dtrain.pretraining.excluded import excluded_sources, excluded_texts, lines_of
from dtrain.pretraining.words import check_dictionary
from dtrain.recipe.corpus import CorpusSource, CorpusSpec
from dtrain.recipe.pretraining import Pretrain
from dtrain.recipe.schema import Recipe

KEY = "pretrain.corpus"
FOLDER = "corpus"  # the folder under `data/` of the text that `pretrain` reads
PLAIN = (".txt", ".text")
IN_FOLDERS = (*PLAIN, ".jsonl")  # the files of a folder that are read if no format is named


def corpus_files(spec: CorpusSpec) -> list[tuple[CorpusSource, Source]]:
    """Every file of the corpus with its format, also those in folders, in the order of the recipe.

    Raises:
        InputError: naming the key, where a file is missing, empty or of no known format.
    """
    problems = Problems()
    found: list[tuple[CorpusSource, Source]] = []
    for number, source in enumerate(spec.sources):
        key = f"{KEY}.sources.{number}"
        try:
            found += [(source, Source(CORPUS, name, kind, source.encoding)) for name, kind in _files_of(source)]
        except InputError as error:
            problems.add(f"{key}: {error}")
    problems.raise_if_any()
    return found


def _files_of(source: CorpusSource) -> list[tuple[str, str]]:
    name = source.path
    if name.startswith(HUB):
        return [(name, "hub")]
    path = resolve_path(name)
    if not path.exists():
        matching = sorted(glob.glob(str(path), recursive=True))
        if not matching:
            raise InputError(f"{name}: no such file")
        return [found for match in matching for found in _files_of(source.model_copy(update={"path": match}))]
    if not path.is_dir():
        if path.stat().st_size == 0:
            raise InputError(f"{name}: the file is empty")
        return [(name, _format_of(source, path))]
    if source.format == "dataset" or is_dataset(path):
        return [(name, "dataset")]
    inside = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith((".", "_"))]
    if source.format == "auto":
        inside = [file for file in inside if suffix_of(file) in IN_FOLDERS]
    if not any(file.stat().st_size for file in inside):
        what = f"file that ends with {', '.join(IN_FOLDERS)}" if source.format == "auto" else "file"
        raise InputError(f"{name}: holds no {what} with text in it, and is no `datasets` folder")
    return [(str(file), _format_of(source, file)) for file in inside if file.stat().st_size]


def _format_of(source: CorpusSource, path: Path) -> str:
    if source.format != "auto":
        return source.format
    suffix = suffix_of(path)
    by_suffix = SUFFIXES.get(suffix, "lines" if suffix in PLAIN else None)
    if by_suffix is None:
        raise InputError(f"{path}: the suffix {suffix or '(none)'} tells no format; set `format`")
    return by_suffix


def read_documents(spec: CorpusSpec, problems: Problems) -> Iterator[str]:
    """Raw documents, whose lines are separated by line feeds; what is wrong with a line is added to `problems`."""
    for source, file in [found for found in corpus_files(spec) for _ in range(found[0].repeat)]:
        if file.format == "lines":
            yield from _plain_documents(file, source.documents == "line", problems)
            continue
        for line, record in read_records(file, source.header, source.column, problems):
            try:
                yield text_of(record, source.column)
            except ValueError as error:
                problems.add_row(file.name, line, error)


def _plain_documents(file: Source, line_each: bool, problems: Problems) -> Iterator[str]:
    lines: list[str] = []
    for _, line in numbered_lines(file.path, file.name, problems, file.encoding, file.encoding_key):
        if line_each:
            yield line
        elif line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def check_corpus(recipe: Recipe, prepared: Callable[[], bool] = lambda: False) -> None:
    """Check the files and the model that the section names, and every line of the text unless it is prepared already.

    Args:
        prepared: tells whether the text is prepared; called once the files are known to be there.

    Raises:
        InputError: with every problem.
    """
    spec = recipe.pretrain
    assert spec is not None
    model, dictionary = spec.model, spec.corpus.dictionary
    found: list[str] = []
    for look in (
        lambda: corpus_files(spec.corpus),
        lambda: excluded_sources(recipe),
        lambda: bert_vocabulary(model.vocabulary, "pretrain") if model.vocabulary else None,
        lambda: existing_file(dictionary, f"{KEY}.dictionary") if dictionary else None,
        lambda: _check_continued(spec),
    ):
        try:
            look()
        except InputError as error:
            found += error.problems
    if found:
        raise InputError(found)
    if not prepared():
        problems = Problems()
        if dictionary:
            check_dictionary(dictionary, problems)
        # A file that an epoch repeats is checked once.
        sources = [source.model_copy(update={"repeat": 1}) for source in spec.corpus.sources]
        once = spec.corpus.model_copy(update={"sources": sources})
        empty = not any([text.strip() != "" for text in read_documents(once, problems)])
        problems.raise_if_any()
        if empty:
            raise InputError(f"{KEY}.sources: no text in them")
        excluded_texts(recipe, Normalizer(recipe.views()[0].data.normalize))


def _check_continued(spec: Pretrain) -> None:
    """Raise InputError if a model folder to go on from is of another type, or has too few positions for a phase."""
    path = Path(spec.model.pretrained or "") / "config.json"
    if not spec.model.pretrained or not path.is_file():  # a hub model is checked when it is loaded
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, positions = config.get("model_type"), config.get("max_position_embeddings")
    except (ValueError, AttributeError):
        raise InputError(f"pretrain.model.pretrained: {path}: is not a model's configuration") from None
    if kind != spec.model.type:
        raise InputError(f"pretrain.model.pretrained: {path.parent}: is of type {kind!r}, not {spec.model.type!r}")
    for number, phase in enumerate(spec.phases):
        if kind == "bert" and isinstance(positions, int) and phase.max_length > positions:
            raise InputError(
                f"pretrain.phases.{number}.max_length: {phase.max_length} is more than the {positions} positions of "
                f"{path.parent}"
            )


class DocumentNormalizer:
    """Called as `normalizer(text) -> (text, lines left out)`: each line normalised, without excluded and empty ones.

    A document becomes empty if it is excluded as a whole: its lines, or those left of it, joined to one text.
    """

    def __init__(self, normalizer: Normalizer, excluded: set[str]) -> None:
        self.normalizer = normalizer
        self.excluded = excluded

    def __call__(self, text: str) -> tuple[str, int]:
        lines = [line for raw in lines_of(text) if (line := self.normalizer(raw))]
        kept = [line for line in lines if line not in self.excluded]
        if any(self.normalizer(" ".join(some)) in self.excluded for some in (lines, kept) if len(some) > 1):
            return "", len(lines)
        return "\n".join(kept), len(lines) - len(kept)
