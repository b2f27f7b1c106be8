"""Documents of a corpus as the user's files hold them, and the rows that must not be among them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dtrain.data.files import CORPUS, HUB, SUFFIXES, Source, existing_file, numbered_lines, resolve_path
from dtrain.data.normalize import Normalizer
from dtrain.data.problems import Problems
from dtrain.data.records import read_records
from dtrain.data.sources import text_of
from dtrain.data.tokenizers import bert_vocabulary
from dtrain.errors import InputError
from dtrain.pretraining.excluded import excluded_sources
from dtrain.recipe.pretraining import CorpusSource, CorpusSpec
from dtrain.recipe.schema import Recipe

KEY = "pretrain.corpus"
PLAIN = (".txt", ".text")


def corpus_files(spec: CorpusSpec) -> list[tuple[CorpusSource, Source]]:
    """Every file of the corpus with its format settled, folders opened, in the order of the recipe.

    Raises:
        InputError: naming the key, where a file is missing, empty or of no known format.
    """
    problems = Problems()
    found: list[tuple[CorpusSource, Source]] = []
    for number, source in enumerate(spec.sources):
        key = f"{KEY}.sources.{number}"
        try:
            found += [(source, Source(CORPUS, name, kind)) for name, kind in _files_of(source)]
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
        raise InputError(f"{name}: no such file")
    if not path.is_dir():
        if path.stat().st_size == 0:
            raise InputError(f"{name}: the file is empty")
        return [(name, _format_of(source, path))]
    if source.format == "dataset" or (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return [(name, "dataset")]
    known = (*PLAIN, *SUFFIXES)
    inside = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in known)
    if not inside:
        raise InputError(f"{name}: holds no file that ends with {', '.join(known)}, and is no `datasets` folder")
    return [(str(file), _format_of(source, file)) for file in inside if file.stat().st_size]


def _format_of(source: CorpusSource, path: Path) -> str:
    if source.format != "auto":
        return source.format
    by_suffix = SUFFIXES.get(path.suffix.lower(), "lines" if path.suffix.lower() in PLAIN else None)
    if by_suffix is None:
        raise InputError(f"{path}: the suffix {path.suffix or '(none)'} tells no format; set `format`")
    return by_suffix


def read_documents(spec: CorpusSpec, problems: Problems) -> Iterator[str]:
    """Raw documents, their lines parted by a line feed; what is wrong with a line becomes a problem."""
    for source, file in [found for found in corpus_files(spec) for _ in range(found[0].repeat)]:
        if file.format == "lines":
            yield from _plain_documents(file, source.documents == "line", problems)
            continue
        for line, record in read_records(file, source.header, source.column, problems):
            try:
                yield text_of(record, source.column)
            except ValueError as error:
                problems.add(f"{file.name}:{line}: {error}")


def _plain_documents(file: Source, line_each: bool, problems: Problems) -> Iterator[str]:
    lines: list[str] = []
    for _, line in numbered_lines(file.path, file.name, problems):
        if line_each:
            yield line
        elif line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def check_corpus(recipe: Recipe) -> None:
    """The files that the section names, without reading their rows; raises InputError with every problem."""
    spec = recipe.pretrain
    assert spec is not None
    model, dictionary = spec.model, spec.corpus.dictionary
    found: list[str] = []
    for look in (
        lambda: corpus_files(spec.corpus),
        lambda: excluded_sources(recipe),
        lambda: bert_vocabulary(model.vocabulary, "pretrain") if model.vocabulary else None,
        lambda: existing_file(dictionary, f"{KEY}.dictionary") if dictionary else None,
    ):
        try:
            look()
        except InputError as error:
            found += error.problems
    if found:
        raise InputError(found)


class DocumentNormalizer:
    """Calls as `normalizer(text) -> (text, lines left out)`: each line normalised, without excluded and empty ones.

    A document that is excluded as a whole (its lines as one text) becomes empty.
    """

    def __init__(self, normalizer: Normalizer, excluded: set[str]) -> None:
        self.normalizer = normalizer
        self.excluded = excluded

    def __call__(self, text: str) -> tuple[str, int]:
        lines = [line for raw in text.splitlines() if (line := self.normalizer(raw))]
        if len(lines) > 1 and self.normalizer(" ".join(lines)) in self.excluded:
            return "", len(lines)
        kept = [line for line in lines if line not in self.excluded]
        return "\n".join(kept), len(lines) - len(kept)
