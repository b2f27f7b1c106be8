"""Sections `model`: the description of an architecture, and the registry of all architectures.

An architecture has two parts: a registered subclass of `Architecture`, with its keys in a recipe and what the rest of
the package needs to know of it; and a torch module, which the subclass names. The package's own are in
`recipe/architectures/` and `models/`. Nothing else lists them: another one is a file in each of the two folders, or in
a package of its own:

    @register_architecture
    class MyNet(Architecture):
        type: Literal["my_net"]
        hidden: Size = 64
        module: ClassVar[str] = "my_package.my_net:MyNet"
        graph: ClassVar[str] = LOGITS
        tasks: ClassVar[tuple[str, ...]] = ("classification", "pairs")

The module's constructor takes `vocab_size`, `pad_token_id`, `classes` (a number) or `tags` (their names), and its keys in
the recipe, all by name; see `models/textcnn.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from dtrain.losses.layers import EncoderShape
from dtrain.recipe.initial import InitSpec
from dtrain.recipe.values import Closed, FilePath, Size

# hidden size, layers, heads (Turc et al. 2019, 1908.08962, table 1; Devlin et al. for base and large)
ENCODER_SIZES = {
    "tiny": (128, 2, 2),
    "mini": (256, 4, 4),
    "small": (512, 4, 8),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}

TEXT_TASKS = ("classification", "pairs", "regression", "multi_label")  # their answer is one vector of logits a row

LOGITS, EMISSIONS = "dtrain.export.graphs:Logits", "dtrain.export.graphs:Emissions"  # for `graph`
WRITING = "dtrain.export.writing:Writing"
PRETRAIN = "pretrain"  # for `pretrained`: the model that the recipe's section of this name makes


class Architecture(Closed):
    """A section `model`.

    Attributes of a subclass:
        module: its `nn.Module` as "package.module:Class", imported when a model is built or loaded; None for models
            that transformers has.
        tasks: the values of `data.task` that it is for.
        two_texts: whether it reads only pairs of texts, and each text of a pair by itself.
        stacked: whether students of one shape can train as one stacked model (`students/ways.py`).
        early_exits: whether it has a classifier after several layers, each of which needs a loss.
        several: whether it has a head for each of several tasks, and serves no single one.
        builder: for a model that transformers has, what makes a new one, as "package.module:function".
        graph: the `Graph` of dtrain/export/graphs.py by which `dtrain export` writes it, as "package.module:Class";
            None: it cannot be exported.
    """

    type: str  # the architecture; there is a section `Model` for each below
    module: ClassVar[str | None] = None
    tasks: ClassVar[tuple[str, ...]] = ()
    two_texts: ClassVar[bool] = False
    stacked: ClassVar[bool] = False
    early_exits: ClassVar[bool] = False
    several: ClassVar[bool] = False
    builder: ClassVar[str | None] = None
    graph: ClassVar[str | None] = None

    @property
    def transformer(self) -> EncoderSpec | None:
        """The transformer in it, which brings a tokenizer of its own: itself, or its `encoder`."""
        return getattr(self, "encoder", None)

    @property
    def reads_privileged(self) -> bool:
        """Whether it reads annotations beside the text, which only a teacher may."""
        return False

    @property
    def classifier_of(self) -> str | None:
        """The name of the teacher whose classifier it starts from; None: it starts from a random one."""
        return None

    @property
    def begins_with(self) -> list[str]:
        """The names of the teachers whose weights it starts from."""
        encoder = self.transformer
        init = encoder.init if encoder is not None else None
        return [name for name in (init.source if init else None, self.classifier_of) if name is not None]

    @property
    def token_width(self) -> int | None:
        """Width of the vector of a character that a tagger's classifier reads; None where the recipe does not tell."""
        return None

    @property
    def feature_width(self) -> int | None:
        """Width of the vector that a classifier reads; None where the recipe does not tell, as with `pretrained`."""
        encoder = self.transformer
        return None if encoder is None or encoder.pretrained else encoder.shape()[0]

    @property
    def encoder_shape(self) -> EncoderShape | None:
        """Width, layers and heads of its transformer; None if it has none, or where the recipe does not tell."""
        encoder = self.transformer
        return None if encoder is None or encoder.pretrained else EncoderShape(*encoder.shape())

    @property
    def multiply_adds(self) -> float:
        """Approximate multiply-adds of one pass over one token, to estimate training times; only ratios matter."""
        return 0.0 if self.transformer is None else self.transformer.multiply_adds


class EncoderSpec(Architecture):
    """A transformer: `pretrained` (a folder or a hub name), or from scratch by `size` or by explicit shape.

    In a recipe with a `pretrain` section, `pretrained: pretrain` is what that section makes.
    """

    _made_here: str | None = PrivateAttr(None)
    builder: ClassVar[str | None] = "dtrain.models.transformer:build_classifier"
    graph: ClassVar[str | None] = LOGITS
    encodes: ClassVar[bool] = True  # whether it is an encoder only, which other models may contain
    # a model folder or hub name to start from; `pretrain`: what the section `pretrain` makes
    pretrained: FilePath | None = None
    # shape of a model from scratch: tiny 2 layers of 128, mini 4 of 256, small 4 of 512, medium 8 of 512, base 12 of
    # 768, large 24 of 1024
    size: Literal["tiny", "mini", "small", "medium", "base", "large"] = "mini"
    hidden: Size | None = None  # hidden size in place of that of `size`
    layers: Size | None = None  # number of layers in place of that of `size`
    heads: Size | None = None  # attention heads in place of those of `size`; they must divide the hidden size
    intermediate: Size | None = None  # width of the feed-forward layers; default: 4 times the hidden size
    # dropout of hidden states, attention and classifier; default: 0.1, for a pretrained model its own
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    # a vocab.txt for a model from scratch; left out: a WordPiece vocabulary is trained on the training text
    vocabulary: FilePath | None = None
    vocabulary_size: Annotated[int, Field(ge=100)] = 8000  # size of the WordPiece vocabulary that is trained
    # name of another transformer of the recipe: both read the same tokens, position by position
    tokenizer: Annotated[str, Field(min_length=1)] | None = None
    # of a student: start from the weights of a trained teacher of the recipe; null: random
    init: InitSpec | None = None

    @model_validator(mode="after")
    def scratch_or_pretrained(self) -> Self:
        if self.tokenizer and {"vocabulary", "vocabulary_size"} & self.model_fields_set:
            raise ValueError(f"tokenizer: {self.tokenizer!r} brings the vocabulary; leave out vocabulary and its size")
        shape = self.model_fields_set - {"type", "pretrained", "dropout"}
        if self.pretrained and shape:
            raise ValueError(f"pretrained and {min(shape)} exclude each other: a pretrained model brings its own")
        hidden, _, heads = self.shape()
        if not self.pretrained and hidden % heads:
            raise ValueError(f"heads: {heads} heads do not divide a hidden size of {hidden}")
        return self

    @model_serializer(mode="wrap")
    def without_what_it_is_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what a pretrained model or a tokenizer brings, so that the resolved recipe can be loaded."""
        values: dict[str, Any] = handler(self)
        if self.tokenizer:
            values = {k: v for k, v in values.items() if k not in ("vocabulary", "vocabulary_size")}
        if self.init is None:
            values.pop("init", None)
        return {k: v for k, v in values.items() if not self.pretrained or k in ("type", "pretrained", "dropout")}

    @property
    def given_tokenizer(self) -> tuple[object, ...] | None:
        """What identifies its tokenizer, if a model or a vocabulary file gives it; None if it is counted on text."""
        given = self.pretrained or self.vocabulary
        return (self.type, self.pretrained, self.vocabulary, self.vocabulary_size) if given else None

    @property
    def source(self) -> str | None:
        """The folder or name of the pretrained model: `pretrained`, or the run's own folder that this stands for."""
        return self._made_here or self.pretrained

    @property
    def made_here(self) -> bool:
        """Whether the recipe itself makes the pretrained model."""
        return self._made_here is not None

    def take_from(self, folder: str) -> None:
        """Set the folder that `pretrained: pretrain` stands for."""
        self._made_here = folder

    def shape(self) -> tuple[int, int, int]:
        """Hidden size, layers and heads of a model from scratch."""
        hidden, layers, heads = ENCODER_SIZES[self.size]
        return self.hidden or hidden, self.layers or layers, self.heads or heads

    def config(self) -> dict[str, Any]:
        """The values of the transformers configuration that give a model from scratch its shape."""
        hidden, layers, heads = self.shape()
        return {
            "model_type": self.type,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": self.intermediate or 4 * hidden,
            **self.extras,
        }

    @property
    def extras(self) -> dict[str, Any]:
        """Values of its transformers configuration that a BERT does not have."""
        return {}

    @property
    def reading(self) -> list[Any]:
        """What identifies its tokenizer beside `pretrained`, `vocabulary` and `vocabulary_size`."""
        return []

    def unlike_folder(self, folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
        """Why the folder of a pretrained model does not fit this very architecture; `config` is its config.json."""
        yield from ()

    @property
    def transformer(self) -> EncoderSpec:
        return self

    @property
    def multiply_adds(self) -> float:
        hidden, layers, _ = self.shape()
        return 12.0 * hidden * hidden * layers


class ExternalSpec(Architecture):
    """The `model` of a teacher with `from`, whose folder says what model it is. It is never written in a recipe."""

    type: Literal["given"] = "given"
    folder: FilePath


def recurrence(hidden: int, inputs: int, layers: int = 1) -> float:
    """`multiply_adds` of a bidirectional LSTM.

    It runs token after token and takes about three times as long as its arithmetic alone (measured on 2 cores).
    """
    return 3 * 2 * 4.0 * hidden * (inputs + hidden + (layers - 1) * 3 * hidden)


# --- the registry ------------------------------------------------------------------------------------

Registered = TypeVar("Registered", bound=Architecture)
_ARCHITECTURES: dict[str, type[Architecture]] = {}


def register_architecture(spec: type[Registered]) -> type[Registered]:
    """Make a subclass of `Architecture` a `model.type` of recipes; its name is the one word that `type` allows.

    Raises:
        ValueError: the name is taken, or `tasks` is empty.
    """
    (name,) = get_args(spec.model_fields["type"].annotation)
    if name in _ARCHITECTURES:
        raise ValueError(f"architecture {name!r} is registered twice")
    if not spec.tasks:
        raise ValueError(f"architecture {name!r}: tasks is empty")
    _ARCHITECTURES[name] = spec
    return spec


def architectures() -> dict[str, type[Architecture]]:
    """Every registered architecture by its name: the package's own, file by file, and then others."""
    own = {name: place for place, name in enumerate(_import_own())}
    return dict(sorted(_ARCHITECTURES.items(), key=lambda item: own.get(item[1].__module__, len(own))))


@cache
def _import_own() -> list[str]:
    """Import the files of `recipe/architectures/`, each of which registers what is in it; their modules' names."""
    package = importlib.import_module("dtrain.recipe.architectures")
    files = sorted(
        (module.name for module in pkgutil.iter_modules(package.__path__)), key=lambda n: n != "transformers"
    )
    names = [f"{package.__name__}.{name}" for name in files]  # transformers come first, as they do in messages
    for name in names:
        importlib.import_module(name)
    return names


def of_type(value: Any, base: type[Architecture]) -> type[Architecture]:
    """The architecture that a section names by its `type`, among the subclasses of `base`.

    Raises:
        PydanticKnownError: no section, no type, or an unknown one.
    """
    known = {name: spec for name, spec in architectures().items() if issubclass(spec, base)}
    if base is EncoderSpec:
        known = {name: spec for name, spec in known.items() if getattr(spec, "encodes", True)}
    if not isinstance(value, dict):
        raise PydanticKnownError("model_attributes_type")
    if "type" not in value:
        raise PydanticKnownError("union_tag_not_found", {"discriminator": "'type'"})
    name = str(value["type"])
    if name not in known:
        expected = ", ".join(map(repr, known))
        raise PydanticKnownError(
            "union_tag_invalid", {"discriminator": "'type'", "tag": name, "expected_tags": expected}
        )
    return known[name]


def _chosen(base: type[Architecture]) -> WrapValidator:
    """Validate a section as the architecture that its `type` names."""

    def validate(value: Any, _: ValidatorFunctionWrapHandler) -> Any:
        return value if isinstance(value, base) else of_type(value, base).model_validate(value)

    return WrapValidator(validate)


if TYPE_CHECKING:
    ModelSpec = Architecture
    EncoderModel = EncoderSpec
else:
    ModelSpec = Annotated[SerializeAsAny[Architecture], _chosen(Architecture)]
    EncoderModel = Annotated[SerializeAsAny[EncoderSpec], _chosen(EncoderSpec)]


def encoder_of(spec: BaseModel | None) -> EncoderSpec | None:
    """The transformer in a model section: the model itself, or its encoder; None for models without."""
    return spec.transformer if isinstance(spec, Architecture) else None
