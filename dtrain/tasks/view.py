"""What a report shows of a kind of task: which scores, how they are called, which of them ranks models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """Keys of `evaluation.json`, and how they are called on the page."""

    lead: str  # the score that ranks models; it stands in the headline and the plots
    title: str  # of the lead, inside a sentence
    columns: tuple[tuple[str, str], ...]  # scores in the tables, with their titles
    spread: tuple[str, ...]  # scores of which a group of seeds has mean and deviation; the lead is one
    loss: str  # what `loss` is
    details: tuple[str, ...]  # of a part's record, what is shown of one model beside its scores
    note: str  # a sentence on how the scores are counted
    ways: tuple[str, ...] = ("",)  # those in which speed is measured (`Task.ways`)
    timed: str = ""  # what is timed beside the forward pass
