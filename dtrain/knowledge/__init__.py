"""The knowledge store: teachers' outputs, computed once, joined to rows by id."""

from dtrain.knowledge.format import RAGGED, Identity, Layout, Manifest, StoreError, new_layout, read_manifest
from dtrain.knowledge.reader import KnowledgeReader, StoreReader
from dtrain.knowledge.verify import verify
from dtrain.knowledge.writer import StoreWriter

__all__ = [
    "RAGGED",
    "Identity",
    "KnowledgeReader",
    "Layout",
    "Manifest",
    "StoreError",
    "StoreReader",
    "StoreWriter",
    "new_layout",
    "read_manifest",
    "verify",
]
