"""The unit in which a model's logit is a number: the user's own, or standard deviations from the training rows' mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SCALE = "standardized"  # the entry of config.json


@dataclass(frozen=True)
class Scale:
    """number = logit x deviation + mean."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def from_config(cls, entry: dict[str, float] | None) -> Scale:
        """That of a model's config.json, where there is such an entry."""
        return cls(**entry) if entry else cls()

    def as_config(self) -> dict[str, float]:
        """The entry of config.json."""
        return {"mean": self.mean, "deviation": self.deviation}

    def inward(self, numbers: np.ndarray) -> np.ndarray:
        """The user's numbers, float64, as models learn them."""
        return (numbers - self.mean) / self.deviation

    def outward(self, logits: np.ndarray) -> np.ndarray:
        """Models' logits, float64, as numbers of the user's."""
        return logits * self.deviation + self.mean
