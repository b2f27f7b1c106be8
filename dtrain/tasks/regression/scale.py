"""The unit of a model's logit: that of the user's numbers, or standard deviations from the training rows' mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SCALE = "standardized"  # the name of the entry in config.json


@dataclass(frozen=True)
class Scale:
    """The map from logits to numbers: number = logit x deviation + mean."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def from_config(cls, entry: dict[str, float] | None) -> Scale:
        """The scale in an entry of a model's config.json; the identity if there is no entry."""
        return cls(**entry) if entry else cls()

    def as_config(self) -> dict[str, float]:
        """The entry of config.json."""
        return {"mean": self.mean, "deviation": self.deviation}

    def inward(self, numbers: np.ndarray) -> np.ndarray:
        """The logits, float64, that correspond to numbers in the user's unit."""
        return (numbers - self.mean) / self.deviation

    def outward(self, logits: np.ndarray) -> np.ndarray:
        """The numbers in the user's unit, float64, that correspond to logits."""
        return logits * self.deviation + self.mean
