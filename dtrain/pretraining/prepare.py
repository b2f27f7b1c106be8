"""From the corpus's files to packed rows under `<run>/data/corpus/`: read, checked, tokenised and packed once.

The main rank works, the others wait; worker processes normalise and tokenise where there is much to do, and the finished
part of that work survives a stop.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dtrain.data.normalize import Normalizer
from dtrain.data.problems import Problems
from dtrain.data.vocabularies import WordCounter, given_tokenizer, load_tokenizer, tokenizer_of_words
from dtrain.errors import DtrainError, InputError
from dtrain.log import say
from dtrain.pretraining.corpus import FOLDER, KEY, DocumentNormalizer, read_documents
from dtrain.pretraining.excluded import excluded_texts
from dtrain.pretraining.pieces import Pieces, hear, remove_pieces
from dtrain.pretraining.words import TokenFlagger, check_dictionary, segmenter
from dtrain.recipe.pretraining import Pretrain
from dtrain.recipe.schema import Recipe
from dtrain.runfolder import DONE, RunFolder, is_done, mark_done, publish_folder, read_json, write_json
from dtrain.tasks.masked_lm.masking import UNKNOWN
from dtrain.tasks.masked_lm.packing import Documents, pack, write_rows
from dtrain.tasks.masked_lm.pairs import write_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from dtrain.runtime.stop import StopRequest

PARTS = ("train", "held_out")
RAW = "raw.arrow"
STRETCH = 20_000  # documents that are packed at a time
STRETCH_TOKENS = 1 << 26  # and fewer documents where they are long
DOCUMENT_CHARACTERS = 1 << 28  # at most, so that a document, and a batch of them, fits in Arrow's 2 GiB as UTF-8
WRITE_EVERY, WRITE_CHARACTERS = 1000, 1 << 26  # raw documents, or characters, in a batch of the Arrow file

TEXTS = datasets.Features(
    {"text": datasets.Value("string"), "lines_out": datasets.Value("int32"), "share": datasets.Value("float64")}
)
WORDS = datasets.Features({"word": datasets.Value("string"), "count": datasets.Value("int64")})
TOKENS = datasets.Features(
    {
        "tokens": datasets.List(datasets.Value("int32")),
        "flags": datasets.List(datasets.Value("uint8")),
        "held_out": datasets.Value("bool"),
    }
)


def prepare_corpus(
    recipe: Recipe,
    folder: RunFolder,
    identity: str,
    stop: StopRequest | None = None,
    *,
    name: str = FOLDER,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> None:
    """Write tokens and, for the length of every phase, packed rows, unless they are complete for exactly these inputs.

    Args:
        stop: asked on this rank alone, since the other ranks wait for it.
        name: the name of the corpus's folder under `data/`.
        tokenizer: the one that reads the text; None: the one that `pretrain.model` brings, or a new one.

    Raises:
        InputError: files are not what the recipe says, or there is too little text to fill a row; tokens are kept then.
        Stopped: a stop was requested; finished work is kept.
    """
    spec = recipe.pretrain
    assert spec is not None
    corpus = folder.data / name
    datasets.disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tokenizers' threads and forked workers do not mix
    lengths = sorted({phase.max_length for phase in spec.phases})
    missing = [length for length in lengths if not is_done(rows_folder(folder, spec, length, name), identity)]
    there = is_done(corpus, identity)
    if there:
        remove_pieces(corpus)  # left by a run that was killed before it removed them
        if not missing:
            return
    given = tokenizer or _given_tokenizer(recipe, spec)
    if not there:
        problems = Problems()
        if spec.corpus.dictionary:
            check_dictionary(spec.corpus.dictionary, problems)
        problems.raise_if_any()
        with Pieces(corpus, identity, stop) as pieces, publish_folder(corpus) as aside:
            _write_tokens(recipe, spec, given, pieces, aside)
            mark_done(aside, identity)
        missing = lengths
    for length in missing:
        with publish_folder(rows_folder(folder, spec, length, name)) as aside:
            counts, left_out = _write_packed(corpus, length, spec.next_sentence, stop, aside)
            mark_done(aside, identity)
        told = ", ".join(f"{part.replace('_', ' ')} {count:,}" for part, count in counts.items())
        without = f"; left out {left_out:,} without two sentences of a document" if left_out else ""
        say(f"{'pretrain' if name == FOLDER else name}: {told} rows of {length} tokens{without}")


def corpus_tokenizer(folder: RunFolder, name: str = FOLDER) -> Path:
    """The folder of the tokenizer with which the corpus was tokenised."""
    return folder.data / name / "tokenizer"


def rows_folder(folder: RunFolder, spec: Pretrain, length: int, name: str = FOLDER) -> Path:
    """The folder of a phase's rows. Pairs have another one than rows of single texts, so that one corpus serves both."""
    return folder.data / name / f"{'pairs' if spec.next_sentence else 'rows'}-{length}"


def _given_tokenizer(recipe: Recipe, spec: Pretrain) -> PreTrainedTokenizerFast | None:
    tokenizer = given_tokenizer("pretrain", spec.model, 0, recipe.views()[0].data.normalize.lower)
    if tokenizer is not None:
        for name in ("cls", "sep", "mask"):
            if getattr(tokenizer, f"{name}_token_id") is None:
                raise InputError(f"pretrain.model: its tokenizer has no [{name.upper()}]")
        config = Path(spec.model.pretrained or "") / "config.json"
        embeddings = read_json(config).get("vocab_size") if spec.model.pretrained and config.is_file() else None
        if isinstance(embeddings, int) and len(tokenizer) > embeddings:
            raise InputError(
                f"pretrain.model.pretrained: {config.parent}: has {embeddings} token embeddings, but its tokenizer has "
                f"{len(tokenizer)} tokens"
            )
        for number, phase in enumerate(spec.phases):
            if phase.max_length > tokenizer.model_max_length and spec.model.type != "nezha":
                raise InputError(
                    f"pretrain.phases.{number}.max_length: {phase.max_length} is more than the tokenizer of "
                    f"pretrain.model takes ({tokenizer.model_max_length})"
                )
    return tokenizer


def _write_tokens(
    recipe: Recipe, spec: Pretrain, given: PreTrainedTokenizerFast | None, pieces: Pieces, folder: Path
) -> None:
    """Write `tokenizer/`, `tokens/` and `corpus.json`."""
    data = recipe.views()[0].data  # tasks agree on how texts are normalised
    normalizer = Normalizer(data.normalize)
    excluded = excluded_texts(recipe, normalizer)
    read = pieces.make("raw", lambda aside: _write_raw(spec, pieces.stop, aside))
    raw = datasets.Dataset.from_file(str(read / RAW))
    if not len(raw):
        raise InputError(f"{KEY}.sources: no text in them")
    assert spec.seed is not None
    normalize = _NormalizeBatch(DocumentNormalizer(normalizer, excluded), spec.seed)
    texts = pieces.map("texts", raw, normalize, TEXTS, data, column="raw")
    out = int(texts.data.column("lines_out").to_numpy().sum())
    share = texts.data.column("share").to_numpy()
    kept = share < 1.0
    texts, share = texts.select(np.flatnonzero(kept)), share[kept]
    different = np.unique(share)
    if len(different) < 2:
        raise InputError(
            f"{KEY}.sources: {len(different)} different document(s) left; training and perplexity need 2 "
            "(in plain text a blank line ends one; with `documents: line` every line is one)"
        )
    # Documents with the same text have the same share, so that none is both held out and trained on.
    wanted = round(spec.corpus.held_out * len(different))
    bound = different[min(max(1, wanted), len(different) - 1) - 1]
    held_out = share <= bound

    training = texts.select(np.flatnonzero(~held_out)).select_columns(["text"])

    lower = data.normalize.lower
    if given is None:
        count_words = _CountBatch(WordCounter(lower))
        words = pieces.map("words", training, count_words, WORDS, data, column="text")

    def write_tokenizer(aside: Path) -> None:
        """Save the given tokenizer, or one made from the text that is not held out."""
        made = given or tokenizer_of_words(spec.model, _summed(words), lower)
        if len(made) == len(made.all_special_ids):
            raise InputError(f"{KEY}.sources: too little text for a vocabulary (no character comes twice)")
        made.save_pretrained(aside)

    saved = pieces.make("tokenizer", write_tokenizer)
    shutil.copytree(saved, folder / "tokenizer", ignore=shutil.ignore_patterns(DONE))
    tokenizer = given or load_tokenizer(saved)
    segmenter(spec.corpus.dictionary, data.normalize)  # made here, so that forked workers have it
    flagger = TokenFlagger(tokenizer, spec.corpus.dictionary, data.normalize)
    encode = _EncodeBatch(flagger, float(bound), excluded)
    tokens = pieces.map("tokens", texts, encode, TOKENS, data, column="text")
    tokens.save_to_disk(folder / "tokens")
    count = int(_lengths(tokens).sum())
    unknown = int(_unknown(tokens).sum())
    info = {
        "documents": len(texts),
        "held_out": int(held_out.sum()),
        "tokens": count,
        "unknown_tokens": unknown,
        "excluded_lines": out,
        "vocabulary": len(tokenizer),
    }
    write_json(folder / "corpus.json", info)
    say(
        f"pretrain: {len(texts):,} documents ({info['held_out']:,} held out), {count:,} tokens ({unknown / count:.2%} in "
        f"words not in the vocabulary of {len(tokenizer):,}); {out:,} lines left out that are in files not to be trained on"
    )


def _write_raw(spec: Pretrain, stop: StopRequest | None, folder: Path) -> None:
    """Write the documents, as they are in the user's files, into one Arrow file.

    Raises:
        InputError: something is wrong with the files.
        Stopped: a stop was requested.
    """
    problems = Problems()
    schema = pa.schema({"raw": pa.string()})
    file = folder / RAW
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        batch: list[str] = []
        characters = 0
        for text in read_documents(spec.corpus, problems):
            if len(text) > DOCUMENT_CHARACTERS:
                problems.add(
                    f"{KEY}.sources: a document of {len(text):,} characters ({text[:20]!r} …), at most "
                    f"{DOCUMENT_CHARACTERS:,} are allowed (a blank line ends one; with `documents: line` every line is one)"
                )
                continue
            batch.append(text)
            characters += len(text)
            if len(batch) == WRITE_EVERY or characters > WRITE_CHARACTERS:
                hear(stop)
                writer.write_batch(pa.record_batch([pa.array(batch)], schema=schema))
                batch, characters = [], 0
        writer.write_batch(pa.record_batch([pa.array(batch, pa.string())], schema=schema))
    problems.raise_if_any()


class _NormalizeBatch:
    """Normalises texts and gives each a number in [0, 1) that depends on it and the seed; 1 if nothing of it is left."""

    def __init__(self, normalizer: DocumentNormalizer, seed: int) -> None:
        self.normalizer, self.salt = normalizer, seed.to_bytes(8, "little")

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        done = [self.normalizer(text) for text in batch["raw"]]
        return {
            "text": [text for text, _ in done],
            "lines_out": [out for _, out in done],
            "share": [self._share(text) if text else 1.0 for text, _ in done],
        }

    def _share(self, text: str) -> float:
        digest = hashlib.blake2b(text.encode(), digest_size=6, key=self.salt).digest()
        return int.from_bytes(digest, "little") / 2**48


def _summed(counted: datasets.Dataset) -> Counter[str]:
    words = Counter[str]()
    for table in counted.with_format("arrow").iter(1 << 20):
        sums = table.group_by("word").aggregate([("count", "sum")])
        for word, times in zip(sums["word"].to_pylist(), sums["count_sum"].to_pylist(), strict=True):
            words[word] += times
    return words


class _CountBatch:
    def __init__(self, counter: WordCounter) -> None:
        self.counter = counter

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        words = self.counter(batch["text"])
        return {"word": list(words), "count": list(words.values())}


class _EncodeBatch:
    """Tokenises texts, after checking once more that no line and no document is an excluded text."""

    def __init__(self, flagger: TokenFlagger, bound: float, excluded: set[str]) -> None:
        self.flagger, self.bound, self.excluded = flagger, bound, excluded

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for text in batch["text"]:
            if text.replace("\n", " ") in self.excluded or not self.excluded.isdisjoint(text.split("\n")):
                raise DtrainError(f"the corpus holds {text[:60]!r}, which is in a file that is not to be trained on")
        tokens, flags = self.flagger(batch["text"])
        return {"tokens": tokens, "flags": flags, "held_out": [share <= self.bound for share in batch["share"]]}


# --- packing ---------------------------------------------------------------------------------------


def _write_packed(
    corpus: Path, length: int, pairs: bool, stop: StopRequest | None, folder: Path
) -> tuple[dict[str, int], int]:
    """Write the rows of each part; returns how many there are by part, and how many more could not be made into pairs."""
    tokenizer = load_tokenizer(corpus / "tokenizer")
    tokens = datasets.load_from_disk(corpus / "tokens")
    held_out = tokens.data.column("held_out").to_numpy()
    known = _lengths(tokens) - _unknown(tokens)
    counts, left_out = {}, 0
    for part, chosen in zip(PARTS, (~held_out, held_out), strict=True):
        stretches = _stretches(tokens, np.flatnonzero(chosen), stop)
        key = f"{KEY}.held_out" if part == "held_out" else f"{KEY}.sources"
        if pairs:
            try:
                counts[part], out = write_pairs(stretches, length, tokenizer.sep_token_id, folder / part)
            except InputError as error:
                raise InputError(f"{key}: {error}") from None
            left_out += out
        else:
            rows = pack(stretches, length, tokenizer.cls_token_id, tokenizer.sep_token_id)
            counts[part] = write_rows(rows, length, folder / part)
        if not counts[part]:
            few = "too little text is held out" if part == "held_out" else "too little text"
            raise InputError(f"{key}: {few} to fill one row of {length} tokens (pretrain.phases: max_length)")
        if not known[chosen].any():
            which = "held-out" if part == "held_out" else "training"
            raise InputError(f"{key}: no word of the {which} text is in the vocabulary of pretrain.model")
    return counts, left_out


def _stretches(tokens: datasets.Dataset, index: np.ndarray, stop: StopRequest | None = None) -> Iterator[Documents]:
    stretch = (_lengths(tokens)[index].cumsum() - 1) // STRETCH_TOKENS
    bounds = np.flatnonzero(np.diff(stretch)) + 1
    starts = np.union1d(np.arange(0, len(index), STRETCH), bounds)
    for chosen in np.split(index, starts[1:]):
        hear(stop)
        table = tokens.select(chosen).with_format("arrow")[:]
        lists = table.column("tokens").combine_chunks()
        flags = table.column("flags").combine_chunks()
        offsets = lists.offsets.to_numpy()
        yield lists.flatten().to_numpy(), flags.flatten().to_numpy(), offsets - offsets[0]


def _unknown(tokens: datasets.Dataset) -> np.ndarray:
    """For each document, how many of its tokens are in words with an unknown token, int [documents]."""
    found = [np.zeros(0, np.int64)]
    for table in tokens.select_columns(["flags"]).with_format("arrow").iter(STRETCH):
        lists = table.column("flags").combine_chunks()
        sums = np.concatenate([[0], (lists.flatten().to_numpy() & UNKNOWN != 0).cumsum()])
        found.append(np.diff(sums[lists.offsets.to_numpy() - lists.offsets[0].as_py()]))
    return np.concatenate(found)


def _lengths(tokens: datasets.Dataset) -> np.ndarray:
    """The number of tokens of each document, int [documents]. Offsets of the joined column might not fit in 32 bits."""
    chunks = tokens.data.column("tokens").chunks
    return np.concatenate([np.zeros(0, np.int64), *(pc.list_value_length(chunk).to_numpy(False) for chunk in chunks)])
