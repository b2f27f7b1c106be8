"""The card of an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dtrain.models.folder import CARD
from dtrain.predict.folder import ModelFolder
from dtrain.runfolder import atomic_write
from dtrain.tasks.registry import TASKS

# Lines of the model's own card that the export's card has in other words.
REPLACED = ("- input:", "- speed:", "- licence:", "- labels:", "- answer:")


def card_of(name: str, to: str, int8: bool, known: ModelFolder, settings: dict[str, Any], size: int) -> str:
    """The card's text: what an export is, needs and does to text, how to use it, and what is known of its model."""
    runtime = "onnxruntime" if to == "onnx" else "torch"
    call = 'Model()(["a text", "another"])' if known.texts == 1 else 'Model()(["a text"], ["its partner"])'
    steps = [key for key, value in known.normalize.model_dump().items() if value]
    language, facts = _made_from(known.folder)
    head = [f"library_name: {runtime}", *([f'language: "{language}"'] if language else [])]
    return (
        "---\n" + "\n".join([*head, f"pipeline_tag: {TASKS[known.task].card_tag}"]) + f"\n---\n# {name}\n\n"
        f"An exported model ({to}{', int8' if int8 else ''}, {size:,} bytes) for task {known.task}, written by dtrain.\n\n"
        f"```python\nfrom predict import Model\n\nprint({call})\n```\n\n"
        f"`predict.py` needs {runtime}, numpy and tokenizers; all else is in this folder.\n\n"
        f"- {_answer(settings)}\n"
        f"- files: {', '.join(settings['graphs'])} (any batch and length), tokenizer.json, settings.json, "
        "normalization.json\n"
        f"- normalisation of every text before the tokenizer: {', '.join(steps) or 'none'}; the graph alone lacks it\n"
        f"- length: {known.max_length} tokens at most; what is longer is {_longer(settings)}\n"
        "- speed: `dtrain export --check` measures one row, `dtrain report` all models of a run side by side\n"
        "- licence: not given; it is for whoever trained the model, and its data, to say\n"
        + ("\nThe model that it was made from:\n\n" + "\n".join(facts) + "\n" if facts else "")
    )


def add_check(folder: Path, words: str) -> None:
    """Add to an export's card what its check found."""
    text = (folder / CARD).read_text(encoding="utf-8")
    with atomic_write(folder / CARD) as file:
        file.write(f"{text}\nThe export beside that model: {words}.\n")


def _made_from(place: Path) -> tuple[str, list[str]]:
    """From a model's own card, if it has one: the language of its texts, and the lines on its training and scores."""
    try:
        text = (place / CARD).read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
    except (OSError, ValueError, yaml.YAMLError):
        return "", []
    language = head.get("language") if isinstance(head, dict) else None
    facts = [line for line in text.splitlines() if line.startswith("- ") and not line.startswith(REPLACED)]
    return language if isinstance(language, str) else "", facts


def _answer(settings: dict[str, Any]) -> str:
    if "writes" in settings:
        return f"answer: a text of {settings['max_length']} tokens at most, written greedily, token by token"
    names: list[str] = settings["labels"] if "labels" in settings else settings["types"]
    shown = ", ".join(names[:40]) + (" ..." if len(names) > 40 else "")
    return f"{'labels' if 'labels' in settings else 'entity types'}: {shown}"


def _longer(settings: dict[str, Any]) -> str:
    return "read in pieces" if "full_stops" in settings else "cut"
