"""Entity precision, recall and F1 for `evaluate`, computed by the code that scores a run.

Offline, from a checkout or an installed package:

    import evaluate
    metric = evaluate.load("dtrain/metrics/modules/tagging")
    metric.add_batch(references=[["B-PER", "I-PER", "O"]], predictions=[["B-PER", "I-PER", "O"]])
    metric.compute(scheme="bio")
"""
# `evaluate` copies this file elsewhere and parses its imports as text: they must be absolute, one module per line.

import datasets
import evaluate
import numpy as np

from dtrain.data.schemes import number_tags, read_spans
from dtrain.metrics import count_entities, entity_scores, per_type

_DESCRIPTION = """\
Scores of entities, counted over all sequences: an entity is found where its type and both ends are right, and tags that
form no whole entity of the scheme are none. Equal to seqeval's with mode="strict" and zero_division=0.
"""

_INPUTS = """\
Args:
    predictions: tags of each sequence, such as ["B-PER", "E-PER", "O"].
    references: gold tags of each sequence, as many.
    scheme: iob1, bio, bioes (the default), bmes or bilou.
Returns:
    precision, recall, f1 over all entities; precision_macro, recall_macro, f1_macro, means over the types that occur in
    references or predictions; f1_weighted by gold entities; entities, the number of gold ones; and per_type:
    precision, recall, f1 and support of each type.
"""


class Tagging(evaluate.Metric):
    def _info(self):
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions, references, scheme="bioes"):
        lengths = [len(tags) for tags in references]
        for row, (predicted, length) in enumerate(zip(predictions, lengths, strict=True)):
            if len(predicted) != length:
                raise ValueError(f"sequence {row} has {length} references and {len(predicted)} predictions")
        found = [[read_spans(tags, scheme) for tags in sequences] for sequences in (references, predictions)]
        types = sorted({span.type for rows in found for spans in rows for span in spans})
        numbers = {name: number for number, name in enumerate(types)}
        gold, predicted = (
            np.concatenate([number_tags(spans, length, numbers) for spans, length in zip(rows, lengths, strict=True)])
            for rows in found
        )
        counts = count_entities(gold, predicted, np.cumsum([0, *lengths]), len(types))
        return {**entity_scores(counts, types), "per_type": per_type(counts, types)}
