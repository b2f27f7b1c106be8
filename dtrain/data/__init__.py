"""From files of text to rows with ids, and from rows to batches of token ids.

    files -> records -> sources -> labels, splits -> corpus      all is read and checked before anything is written
    files -> conll, records -> documents (schemes) -> corpus     the same for tagging; documents are cut into pieces
    corpus -> normalize -> rows/ -> tokenizers -> encode -> encoded/<tokenizer>/         (stages/prepare.py)
    encoded/ -> dataset.EncodedSplit -> batching -> tensors                              (training, inference)

Files under `<run>/data/`:

    rows/<part>/                 id, key, text, (text_b,) label, file, line; parts are train, valid, test, transfer
                                 tagging: id, key, text (a piece), tags, label, document, start, file, line
    rows/data.json               labels in order, rows and labels per part, files, normalisation, fingerprint
    tokenizers/<tokenizer>/      a Hugging Face tokenizer folder
    encoded/<tokenizer>/<part>/  id, input_ids (, token_type_ids)
    encoded/<tokenizer>/encoded.json   vocabulary size, pad id, max_length, rows cut, fingerprints

`rows/done.json` says that the rows are complete, `encoded/<tokenizer>/done.json` that the encoded parts and their
tokenizer are. When one tokenizer changes, rows are encoded again for that tokenizer only.

Importing this package or its readers needs no torch: the launching process checks sources with them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtrain.data.batching import inference_batches, share_of, training_batches
    from dtrain.data.dataset import EncodedSplit, PreparedData, encode_documents, encode_texts
    from dtrain.data.files import resolve_path
    from dtrain.data.normalize import Normalizer
    from dtrain.data.tokenizers import check_tokenizers, tokenizer_name

_HOMES = {
    "inference_batches": "batching",
    "share_of": "batching",
    "training_batches": "batching",
    "EncodedSplit": "dataset",
    "PreparedData": "dataset",
    "encode_documents": "dataset",
    "encode_texts": "dataset",
    "resolve_path": "files",
    "Normalizer": "normalize",
    "check_tokenizers": "tokenizers",
    "tokenizer_name": "tokenizers",
}

__all__ = [
    "Normalizer",
    "EncodedSplit",
    "PreparedData",
    "check_tokenizers",
    "encode_documents",
    "encode_texts",
    "inference_batches",
    "resolve_path",
    "share_of",
    "tokenizer_name",
    "training_batches",
]


def __getattr__(name: str) -> Any:
    """Import the module of `name` when it is first used: importing all of them would delay `dtrain check`."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
