"""What a report shows for a kind of task: which scores, their titles, and the score that ranks models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """Keys of `evaluation.json`, and their titles on the page."""

    lead: str  # the score that ranks models; it is shown in the headline and the plots
    title: str  # the name of the lead within a sentence
    columns: tuple[tuple[str, str], ...]  # the scores in tables, with their titles
    spread: tuple[str, ...]  # scores with mean and deviation over seeds; the lead is one
    loss: str  # the name of what `loss` measures
    details: tuple[str, ...]  # entries of a part's record that are shown for one model besides its scores
    note: str  # a sentence on how the scores are counted
    ways: tuple[str, ...] = ("",)  # the modes in which speed is measured (`Task.ways`)
    timed: str = ""  # what is timed besides the forward pass, as the end of a sentence
