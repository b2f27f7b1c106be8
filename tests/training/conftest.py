"""A world of one process and small synthetic rows, for tests of the training loop."""

from __future__ import annotations

import numpy as np
import pytest

from dtrain.data import EncodedSplit


@pytest.fixture
def rows() -> EncodedSplit:
    """90 rows of 1 to 9 tokens; the label is the parity of the first token, so that it can be learnt."""
    random = np.random.default_rng(0)
    texts = [random.integers(2, 30, random.integers(1, 10)) for _ in range(90)]
    return EncodedSplit(
        ids=np.arange(90),
        labels=np.array([int(text[0]) % 2 for text in texts]),
        tokens=np.concatenate(texts).astype(np.int32),
        types=None,
        offsets=np.cumsum([0, *map(len, texts)]),
        pad_id=0,
        load_rows=lambda: pytest.fail("not needed"),
    )
