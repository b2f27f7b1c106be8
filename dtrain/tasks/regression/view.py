"""What a report shows for regression models."""

from __future__ import annotations

from dtrain.tasks.view import View

VIEW = View(
    lead="pearson",
    title="Pearson correlation",
    columns=(("pearson", "Pearson"), ("spearman", "Spearman")),
    spread=("pearson", "spearman", "mse", "mae", "loss"),
    loss="mean squared error",
    details=("scatter",),
    note="Correlations times 100 are called percent here; the loss is the mean squared error in the unit of the rows.",
)
