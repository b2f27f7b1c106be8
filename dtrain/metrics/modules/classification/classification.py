"""Accuracy, precision, recall and F1 for `evaluate`, computed by the code that scores a run.

Offline, from a checkout or an installed package:

    import evaluate
    metric = evaluate.load("dtrain/metrics/modules/classification")
    metric.add_batch(references=[0, 1, 1], predictions=[0, 1, 0])
    metric.compute()
"""
# `evaluate` copies this file elsewhere and parses its imports as text: they must be absolute, one module per line.

import datasets
import evaluate
import torch

from dtrain.metrics import Confusion, scores

_DESCRIPTION = """\
Scores from a matrix of counts: accuracy; precision, recall and F1 as macro means over the classes that occur in
references or predictions; F1 weighted by the number of references. Equal to scikit-learn's with zero_division=0.
"""

_INPUTS = """\
Args:
    predictions: class numbers from 0.
    references: gold class numbers from 0.
Returns:
    accuracy, precision, recall, f1, f1_weighted, and rows, the number of references.
"""


class Classification(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references):
        predicted, gold = torch.tensor(predictions), torch.tensor(references)
        classes = int(max(predicted.max(), gold.max())) + 1
        return scores(Confusion.of(gold, predicted, classes))
