"""The section `noisy` of a student."""

from __future__ import annotations

from dtrain.recipe.values import Closed, Share


class Noisy(Closed):
    """A noisy student (augment/noisy.py, Xie et al. 2020); noise of the model itself is its `dropout`."""

    confidence: Share = 0.5  # a transfer row stays where its teachers' mean gives some class at least this probability
    balance: bool = True  # keep as many transfer rows of each class that teachers see in them
    token_noise: Share = 0.1  # share of the tokens that is blanked, drawn anew each time
