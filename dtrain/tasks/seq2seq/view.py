"""What a report shows for models that generate text."""

from __future__ import annotations

from dtrain.tasks.view import View

SCORES = ("bleu", "chrf", "rouge_l")
VIEW = View(
    lead="bleu",
    title="BLEU",
    columns=(
        ("bleu", "BLEU, greedy"),
        ("bleu_beam", "BLEU, beam"),
        ("chrf", "chrF, greedy"),
        ("rouge_l", "ROUGE-L, greedy"),
    ),
    spread=(*SCORES, *(f"{score}_beam" for score in SCORES), "loss"),
    loss="cross-entropy a token of the references",
    details=("written", "signature", "beam", "length_penalty"),
    ways=("", "beam"),
    timed=" and all that follows of writing a target, token by token",
    note="BLEU and chrF are of all texts together, ROUGE-L is the mean over texts of that of their characters.",
)
