"""The section `noisy` of a student."""

from __future__ import annotations

from dtrain.recipe.values import Closed, Share


class Noisy(Closed):
    """A noisy student (augment/noisy.py, Xie et al. 2020); the noise of the model itself is its `dropout`."""

    confidence: Share = 0.5  # keep a transfer row if its teachers' mean gives some class at least this probability
    balance: bool = True  # take the same number of transfer rows for each class that the teachers predict
    token_noise: Share = 0.1  # share of the tokens that are blanked, drawn anew each time
