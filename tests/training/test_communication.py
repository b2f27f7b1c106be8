"""The share of a step that is spent in collectives: intervals computed by hand, and records of gloo."""

from __future__ import annotations

import time

import torch

from dtrain.training.communication import CommunicationShare, covered


def test_union_of_intervals() -> None:
    assert covered([]) == 0
    assert covered([(5, 6), (0, 2), (1, 3), (1, 1.5), (3, 4)]) == 5


def test_no_collective_no_share() -> None:
    share = CommunicationShare(torch.device("cpu"))
    assert share.last is None
    with share.watch():
        torch.ones(3).sum()
        time.sleep(0.01)
    assert share.last == 0.0
