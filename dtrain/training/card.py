"""What a model card says about use: how to call the model, and how text is normalised before the model reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dtrain.recipe.data import Data


def card_head(language: str | None, **more: str) -> str:
    """What hubs read at the top of a card: the library, the recipe's `language` where it has one, and `more` keys."""
    lines = ["library_name: dtrain"]
    if language is not None:
        lines.append(f'language: "{language}"')  # in quotes: `no`, Norwegian, is false in YAML
    lines += [f"{key}: {value}" for key, value in more.items()]
    return "---\n" + "\n".join(lines) + "\n---\n"


def use_in_words(place: Path, section: Data, reads: str | None = None, privileged: Sequence[str] = ()) -> str:
    """The last part of a card.

    Args:
        place: where the model's folder will be.
        section: the recipe's `data`, of one task.
        reads: which side of a row it reads, where rows have several.
        privileged: types of the annotations that the model reads beside a text.
    """
    steps = [name for name, done in section.normalize.model_dump().items() if done]
    rows = '["a text"], ["its partner"]' if section.columns.text_b is not None else '["a text", "another"]'
    if privileged:
        rows = f'["a text"], privileged=[[[0, 1, "{privileged[0]}"]]]'
    files = {part: section.paths(part) for part in ("train", "valid", "test", "transfer")}
    named = "; ".join(f"{part} {', '.join(names)}" for part, names in files.items() if names)
    side = "" if reads is None else f"- side of a row that it reads: {reads}\n"
    return (
        f"- data: {named}\n{side}"
        f"- input: normalised ({', '.join(steps) or 'no step'}), at most {section.max_length} tokens\n"
        "- speed: `dtrain report` measures it beside the other models\n"
        "- licence: not given; it is for whoever trained the model, and owns its data, to say\n\n"
        f"```python\nimport dtrain\n\npredictor = dtrain.Predictor({str(place)!r})\nprint(predictor({rows}))\n```\n\n"
        "The predictor normalises text as it was normalised in training. `AutoModel` and a tokenizer alone do not, and "
        "answer otherwise on text that normalisation changes: traditional characters, full-width forms, capitals.\n\n"
        "`dtrain.load(folder)` gives the model alone, a torch module.\n"
    )
