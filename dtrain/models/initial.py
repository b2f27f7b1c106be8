"""Initial weights of a student from its teacher: embeddings and some layers of a transformer, a tagger's classifier."""

from __future__ import annotations

import torch
from torch import nn

from dtrain.errors import InputError
from dtrain.models.inside import trunk_of
from dtrain.models.sequence import SequenceTagger
from dtrain.recipe.initial import InitSpec


@torch.no_grad()
def copy_layers(model: nn.Module, teacher: nn.Module, init: InitSpec, key: str) -> None:
    """Copy weights of a trained teacher into a new model of the same type, in place.

    Embeddings are copied for the tokens and positions that both models have.

    Args:
        key: the recipe's key of the model's section, for messages.

    Raises:
        InputError: the teacher has no such layers, or weights of other shapes.
    """
    own, theirs = trunk_of(model), trunk_of(teacher)
    if theirs is None:
        raise InputError(f"{key}.init.from: {init.source} has no layers to copy")
    problem = init.unlike(own.config.to_dict(), theirs.config.to_dict())
    if problem:
        raise InputError(f"{key}.{problem[0]}: {problem[1]}")
    chosen = [theirs.encoder.layer[layer] for layer in init.chosen(len(theirs.encoder.layer))]
    pairs = [(own.embeddings, theirs.embeddings), *zip(own.encoder.layer, chosen, strict=True)]
    if init.pooler and getattr(own, "pooler", None) is not None and getattr(theirs, "pooler", None) is not None:
        pairs.append((own.pooler, theirs.pooler))
    for to, source in pairs:
        weights = dict(source.named_parameters())
        for name, parameter in to.named_parameters():
            found = weights[name]
            if to is own.embeddings and found.dim() == 2:
                found = found[: len(parameter)]
            if found.shape[1:] != parameter.shape[1:] or (found.dim() == 1 and found.shape != parameter.shape):
                shapes = f"{list(found.shape)} in {init.source}, and {list(parameter.shape)} in the model"
                raise InputError(f"{key}.init: {name} has the shape {shapes}")
            parameter[: len(found)].copy_(found)


@torch.no_grad()
def copy_classifier(model: nn.Module, teacher: nn.Module, key: str) -> None:
    """Copy the classifier of a trained tagger, its layer of emissions and its CRF, into a new tagger, in place.

    Args:
        key: the recipe's key that names the teacher, for messages.

    Raises:
        InputError: one of the two is no tagger, or they differ in tags, in features or in having a CRF.
    """
    if not isinstance(model, SequenceTagger) or not isinstance(teacher, SequenceTagger):
        raise InputError(f"{key}: is no tagger with a classifier of its own")
    for name in ("emissions", "crf"):
        own, theirs = getattr(model, name), getattr(teacher, name)
        if own is None and theirs is None:
            continue
        found = {} if theirs is None else {key: list(weight.shape) for key, weight in theirs.state_dict().items()}
        wanted = {} if own is None else {key: list(weight.shape) for key, weight in own.state_dict().items()}
        if found != wanted:
            raise InputError(f"{key}: its {name} has the weights {found}, and that of the student {wanted}")
        own.load_state_dict(theirs.state_dict())
