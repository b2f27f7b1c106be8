"""What each kind of task allows in a recipe, and what it does where the recipe leaves it open."""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.recipe.values import Output


@dataclass(frozen=True)
class TaskRules:
    """Of metrics and outputs, the first is the default.

    Attributes:
        name: the task as models and losses know it; pairs of texts are classified.
        losses: the default loss on labels, and the one on teachers' outputs.
        weightings: the ways to weigh several teachers that its losses have.
    """

    name: str
    models: tuple[str, ...]
    metrics: tuple[str, ...]
    outputs: tuple[Output, ...]
    losses: tuple[str, str]
    weightings: tuple[str, ...]
    encoders: tuple[str, ...] = ()  # types of models that are for it as the encoder of another only

    def wraps(self, model_type: str) -> bool:
        """Whether a model of this type is for the task as the encoder of another."""
        return model_type in self.encoders


CLASSIFICATION = TaskRules(
    name="classification",
    models=(
        *("bert", "nezha", "bert_cnn", "multi_exit"),
        *("bilstm", "textcnn", "text_rcnn", "fasttext", "siamese"),
    ),
    metrics=("accuracy", "f1", "f1_weighted", "loss"),
    outputs=("logits", "features"),
    losses=("cross_entropy", "soft_targets"),
    weightings=("average", "fixed", "confidence", "entropy", "gradient"),
)
TAGGING = TaskRules(
    name="tagging",
    models=("tagger", "idcnn"),
    metrics=("f1", "f1_macro", "f1_weighted", "accuracy", "loss"),
    outputs=("emissions", "marginals"),
    losses=("tag_likelihood", "marginal_matching"),
    weightings=("average", "fixed"),
    encoders=("bert", "nezha"),
)


def rules_of(data_task: str) -> TaskRules:
    """The rules for a value of `data.task`."""
    return TAGGING if data_task == "tagging" else CLASSIFICATION
