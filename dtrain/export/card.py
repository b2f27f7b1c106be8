"""The card of an exported model."""

from __future__ import annotations

from typing import Any

from dtrain.predict.folder import ModelFolder


def card_of(name: str, to: str, int8: bool, known: ModelFolder, settings: dict[str, Any], size: int) -> str:
    """What it is, what it needs, how it is used, what it does to text."""
    runtime = "onnxruntime" if to == "onnx" else "torch"
    call = 'Model()(["a text", "another"])' if known.texts == 1 else 'Model()(["a text"], ["its partner"])'
    names: list[str] = settings["labels"] if "labels" in settings else settings["types"]
    shown = ", ".join(names[:40]) + (" ..." if len(names) > 40 else "")
    steps = [key for key, value in known.normalize.model_dump().items() if value]
    return (
        f"---\nlibrary_name: {runtime}\n---\n# {name}\n\n"
        f"An exported model ({to}{', int8' if int8 else ''}, {size:,} bytes) for task {known.task}, written by dtrain.\n\n"
        f"```python\nfrom predict import Model\n\nprint({call})\n```\n\n"
        f"`predict.py` needs {runtime}, numpy and tokenizers; all else is in this folder.\n\n"
        f"- {'labels' if 'labels' in settings else 'entity types'}: {shown}\n"
        f"- files: {', '.join(settings['graphs'])} (any batch and length), tokenizer.json, settings.json, "
        "normalization.json\n"
        f"- normalisation of every text before the tokenizer: {', '.join(steps) or 'none'}; the graph alone lacks it\n"
        f"- length: {known.max_length} tokens at most; what is longer is {_longer(settings)}\n"
        "- licence: not given; it is for whoever trained the model, and its data, to say\n"
    )


def _longer(settings: dict[str, Any]) -> str:
    return "read in pieces" if "full_stops" in settings else "cut"
