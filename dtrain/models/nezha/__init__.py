"""NEZHA for transformers 5: configuration, encoder and heads. Importing this registers them with transformers'
Auto classes.

After `import dtrain.models.nezha`, `AutoModel.from_pretrained` and its kin read NEZHA's folders, as they are published
and as this package writes them. Parts of the package that read such a folder by an Auto class import this first.
"""

from dtrain.models.nezha.auto import register
from dtrain.models.nezha.configuration import NezhaConfig
from dtrain.models.nezha.heads import (
    NezhaForMaskedLM,
    NezhaForMultipleChoice,
    NezhaForNextSentencePrediction,
    NezhaForPreTraining,
    NezhaForPreTrainingOutput,
    NezhaForQuestionAnswering,
    NezhaForSequenceClassification,
    NezhaForTokenClassification,
)
from dtrain.models.nezha.modeling import NezhaModel, NezhaPreTrainedModel

__all__ = [
    "NezhaConfig",
    "NezhaForMaskedLM",
    "NezhaForMultipleChoice",
    "NezhaForNextSentencePrediction",
    "NezhaForPreTraining",
    "NezhaForPreTrainingOutput",
    "NezhaForQuestionAnswering",
    "NezhaForSequenceClassification",
    "NezhaForTokenClassification",
    "NezhaModel",
    "NezhaPreTrainedModel",
    "register",
]

register()
