"""The recipe's closed schema: every key, its type, its range and its default.

Only what a key *is* lives here; reading files and overrides is `load.py`. Nothing heavy is imported,
except that the parameters of losses are checked against the functions that implement them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Size = Annotated[int, Field(gt=0, le=65536)]
Column = Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)]
Paths = list[str]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Output = Literal["logits", "emissions", "marginals", "features"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
PATTERN = re.compile(r"[A-Za-z0-9*?\[\]._=+-]+")


class Closed(BaseModel):
    """A section in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), str_strip_whitespace=True)


def check_name(name: str) -> str:
    if not NAME.fullmatch(name) or len(name) > 120:
        raise ValueError(
            "must be at most 120 letters, digits, '.', '_', '-', '=', '+', starting with a letter or digit"
        )
    return name


class Columns(Closed):
    """Where a row's parts are: names (JSON keys, header names) or numbers from 0 (no header)."""

    text: Column = "text"
    text_b: Column | None = None
    label: Column = "label"
    id: Column | None = None

    @model_validator(mode="after")
    def one_role_each(self) -> Columns:
        given = [column for column in (self.text, self.text_b, self.label, self.id) if column is not None]
        twice = [column for column in given if given.count(column) > 1]
        if twice:
            raise ValueError(f"column {twice[0]!r} is given two roles")
        return self


class Split(Closed):
    """Shares cut off the training rows, stratified by label, for each part that has no file."""

    valid: Share = 0.1
    test: Share = 0.0

    @model_validator(mode="after")
    def leaves_something(self) -> Split:
        if self.valid + self.test >= 1.0:
            raise ValueError(f"valid + test is {self.valid + self.test:g}; it must leave training rows (be under 1)")
        return self


class Normalization(Closed):
    """What is done to every text, in this order; part of the identity of data and stores."""

    simplify: bool = True  # traditional -> simplified Chinese
    half_width: bool = True  # full-width -> half-width forms
    control: bool = True  # drop control and zero-width characters
    whitespace: bool = True  # runs of white space -> one space, ends stripped
    lower: bool = True


class Vocabulary(Closed):
    """The students' vocabulary, counted on training and transfer text or given as a file."""

    unit: Literal["character", "word"] = "character"
    min_count: PositiveInt = 3
    max_size: Annotated[int, Field(ge=8)] | None = None
    file: str | None = None


class Data(Closed):
    task: Literal["classification", "pairs", "tagging"] = "classification"
    train: Paths
    valid: Paths = []
    test: Paths = []
    transfer: Paths = []  # unlabelled rows for students to learn the teachers' outputs on
    format: Literal["auto", "jsonl", "tsv", "csv", "lines", "dataset", "conll"] = "auto"
    scheme: Literal["auto", "iob1", "bio", "bioes", "bmes", "bilou"] = "auto"  # of the tags in conll files
    header: bool = True
    columns: Columns = Columns()
    labels: list[str] | str | None = None  # the label map in order: a list, or a file of one a line
    split: Split = Split()
    normalize: Normalization = Normalization()
    vocabulary: Vocabulary = Vocabulary()
    max_length: Annotated[int, Field(ge=4, le=8192)] = 128
    workers: PositiveInt | Literal["auto"] = "auto"

    @field_validator("train", "valid", "test", "transfer", mode="before")
    @classmethod
    def one_or_many(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("labels")
    @classmethod
    def labels_differ(cls, value: list[str] | str | None, info: ValidationInfo) -> list[str] | str | None:
        if isinstance(value, list):
            if info.data.get("task") == "tagging":
                if not value or any(not name or name != name.strip("- ") for name in value):
                    raise ValueError("needs at least one entity type, none empty or with a dash or blank around it")
            elif len(value) < 2:
                raise ValueError(f"{len(value)} label(s) given; classification needs at least 2")
            twice = sorted({label for label in value if value.count(label) > 1})
            if twice:
                raise ValueError(f"label {twice[0]!r} is given twice")
        return value

    @model_validator(mode="after")
    def consistent(self) -> Data:
        if not self.train:
            raise ValueError("train: no file given")
        if self.task == "pairs" and self.columns.text_b is None:
            raise ValueError("columns.text_b: must name the second text for task 'pairs'")
        if self.task != "pairs" and self.columns.text_b is not None:
            raise ValueError("columns.text_b: is only for task 'pairs'")
        if self.task != "tagging":
            for key, found, default in (("format", self.format, "conll"), ("scheme", self.scheme, None)):
                if found == default or (default is None and found != "auto"):
                    raise ValueError(f"{key}: {found!r} is only for task 'tagging'")
        elif self.format not in ("auto", "jsonl", "conll", "lines"):
            raise ValueError(f"format: {self.format!r} is not for task 'tagging' (allowed: auto, conll, jsonl, lines)")
        elif self.vocabulary.unit != "character":
            raise ValueError("vocabulary.unit: task 'tagging' reads characters")
        elif not self.valid and not self.test and "split" not in self.model_fields_set:
            self.split = Split(valid=0.1, test=0.2)  # 7:1:2, as entity corpora without splits are cut
        return self


# hidden size, layers, heads (Turc et al. 2019, 1908.08962, table 1; Devlin et al. for base and large)
ENCODER_SIZES = {
    "tiny": (128, 2, 2),
    "mini": (256, 4, 4),
    "small": (512, 4, 8),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


class EncoderSpec(Closed):
    """A transformer: `pretrained` (a folder or a hub name), or from scratch by `size` or by explicit shape."""

    pretrained: str | None = None
    size: Literal["tiny", "mini", "small", "medium", "base", "large"] = "mini"
    hidden: Size | None = None
    layers: Size | None = None
    heads: Size | None = None
    intermediate: Size | None = None
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    vocabulary: str | None = None  # vocab.txt; else WordPiece is trained on the training text
    vocabulary_size: Annotated[int, Field(ge=100)] = 8000

    @model_validator(mode="after")
    def scratch_or_pretrained(self) -> Self:
        shape = self.model_fields_set - {"type", "pretrained", "dropout"}
        if self.pretrained and shape:
            raise ValueError(f"pretrained and {min(shape)} exclude each other: a pretrained model brings its own")
        hidden, _, heads = self.shape()
        if not self.pretrained and hidden % heads:
            raise ValueError(f"heads: {heads} heads do not divide a hidden size of {hidden}")
        return self

    @model_serializer(mode="wrap")
    def without_shape_of_pretrained(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a pretrained model brings itself stays out of the resolved recipe, which is a recipe again."""
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if not self.pretrained or k in ("type", "pretrained", "dropout")}

    def shape(self) -> tuple[int, int, int]:
        """Hidden size, layers and heads of a model from scratch."""
        hidden, layers, heads = ENCODER_SIZES[self.size]
        return self.hidden or hidden, self.layers or layers, self.heads or heads


class BertSpec(EncoderSpec):
    """BERT (Devlin et al. 2018)."""

    type: Literal["bert"]


class NezhaSpec(EncoderSpec):
    """NEZHA (Wei et al. 2019): BERT with relative positions, alike beyond a distance."""

    type: Literal["nezha"]
    max_relative_position: Size = 64


class BiLSTMSpec(Closed):
    """Embedding -> bidirectional LSTM -> tanh of the two final states (or pooled states) -> linear."""

    type: Literal["bilstm"]
    embedding: Size = 512
    hidden: Size = 512
    layers: Size = 1
    pooling: Literal["final", "max", "mean"] = "final"
    dropout: Share = 0.0


class TextCNNSpec(Closed):
    """Kim 2014: embedding -> convolutions of several widths -> max over time -> dropout -> linear."""

    type: Literal["textcnn"]
    embedding: Size = 300
    filters: Size = 256
    widths: Annotated[list[Annotated[int, Field(gt=0, le=512)]], Field(min_length=1)] = [2, 3, 4]
    dropout: Share = 0.5


class CrfSpec(Closed):
    """The decision of a tagger: a linear-chain CRF over its emissions, or a softmax a character."""

    crf: bool = True
    constrain: bool = False  # transitions that no valid tag sequence has are impossible

    @model_validator(mode="after")
    def constrains_paths(self) -> Self:
        if self.constrain and not self.crf:
            raise ValueError("constrain: needs crf: true")
        return self


class TaggerSpec(CrfSpec):
    """Encoder (or character embedding) -> fusion of its layers -> BiLSTM -> emissions -> CRF."""

    type: Literal["tagger"]
    encoder: Annotated[BertSpec | NezhaSpec, Field(discriminator="type")] | None = None
    embedding: Size = 128  # of a character, where there is no encoder
    fusion: Literal["last", "concat", "dynamic"] = "last"  # concat: of the last 4 layers
    lstm: Size | None = 128  # a direction; null: none
    dropout: Share = 0.5

    @model_validator(mode="after")
    def fits_encoder(self) -> TaggerSpec:
        if self.encoder is None and self.fusion != "last":
            raise ValueError(f"fusion: {self.fusion!r} needs an encoder")
        if self.encoder is not None and "embedding" in self.model_fields_set:
            raise ValueError("embedding: an encoder brings its own")
        return self

    @model_serializer(mode="wrap")
    def without_embedding_beside_encoder(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The resolved recipe is a recipe again."""
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if k != "embedding" or self.encoder is None}


class IdcnnSpec(CrfSpec):
    """Strubell et al. 2017: embedding -> the same block of dilated convolutions, several times -> emissions -> CRF."""

    type: Literal["idcnn"]
    embedding: Size = 128
    filters: Size = 128
    width: Literal[3, 5, 7] = 3
    dilations: Annotated[list[Annotated[int, Field(gt=0, le=64)]], Field(min_length=1)] = [1, 1, 2]
    blocks: Size = 4
    dropout: Share = 0.25


ModelSpec = Annotated[
    BertSpec | NezhaSpec | BiLSTMSpec | TextCNNSpec | TaggerSpec | IdcnnSpec, Field(discriminator="type")
]


def encoder_of(spec: BaseModel | None) -> BertSpec | NezhaSpec | None:
    """The transformer in a model section: the model itself, or a tagger's encoder; None for the package's own."""
    if isinstance(spec, TaggerSpec):
        return spec.encoder
    return spec if isinstance(spec, BertSpec | NezhaSpec) else None


class AdversarialSpec(Closed):
    """Perturb the embeddings against the model in training: methods of Goodfellow 2014, Miyato 2017, Madry 2018."""

    type: Literal["fgm", "fgsm", "pgd"]
    epsilon: Positive = 1.0
    steps: PositiveInt = 3  # pgd only
    step_size: Positive = 0.3  # pgd only
    weight: Positive = 1.0  # of the loss on the perturbed input, added to the plain one


class OptimizerSpec(Closed):
    """`modules` gives parameters whose name starts with a prefix a rate of their own."""

    type: Literal["adamw", "lamb", "sgd"] = "adamw"
    lr: Positive = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive | None = None  # default: 1e-8, lamb 1e-6
    weight_decay: NonNegative = 0.01
    momentum: Probability = 0.9  # sgd only
    modules: dict[str, Positive] = {}
    lr_scaling: Literal["sqrt"] | None = None  # all rates x sqrt(batch_size / reference_batch), see training/optim.py
    reference_batch: PositiveInt | None = None  # the batch size that the rates are meant for

    @model_validator(mode="after")
    def scaled_from_a_batch(self) -> OptimizerSpec:
        if (self.lr_scaling is None) != (self.reference_batch is None):
            raise ValueError("lr_scaling and reference_batch: one needs the other")
        return self


class ScheduleSpec(Closed):
    """Warm-up (a share of all steps when under 1, else steps), then the named decay to `floor` x lr."""

    type: Literal["linear", "cosine", "constant", "exponential"] = "linear"
    warmup: NonNegative = 0.1
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # exponential only: the factor of each epoch on the last
    floor: Probability = 0.0


class LossSpec(BaseModel):
    """One term of a weighted sum; keys beyond these are the loss function's own parameters."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    type: str
    weight: NonNegative = 1.0
    teachers: Annotated[list[str], Field(min_length=1)] | None = None  # default: all of the student's

    @model_validator(mode="after")
    def known_loss(self) -> LossSpec:
        from dtrain.losses import check_loss, coerce_parameters

        check_loss(self.type, self.model_extra or {})
        self.__pydantic_extra__ = coerce_parameters(self.type, self.model_extra or {})
        return self

    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TrainSpec(Closed):
    """What teachers and students share: how a model is trained."""

    name: str
    model: ModelSpec
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None  # default: the recipe's
    epochs: PositiveInt = 3
    batch_size: PositiveInt | None = None  # rows per optimizer step over all ranks; default 32
    batch_tokens: PositiveInt | None = None  # or padded tokens per step over all ranks
    accumulation: PositiveInt = 1  # micro-batches a rank per step
    clip: Positive | None = 1.0  # global gradient norm
    activation_checkpointing: bool = False  # of a transformer's layers: less memory, a third more computing
    precision: Precision = "auto"
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    evaluate_every: PositiveInt | None = None  # steps; default: once an epoch
    adversarial: AdversarialSpec | None = None
    metric: Literal["accuracy", "f1", "f1_weighted", "f1_macro", "loss"] | None = None  # accuracy; tagging: f1
    patience: PositiveInt | None = None  # evaluations without a better score
    checkpoint_every: PositiveInt | None = None  # steps; default: once an epoch
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}

    _name = field_validator("name")(check_name)

    @model_validator(mode="after")
    def one_batch_size(self) -> TrainSpec:
        if self.batch_size and self.batch_tokens:
            raise ValueError("batch_size and batch_tokens exclude each other")
        if self.batch_tokens and self.optimizer.lr_scaling:
            raise ValueError("optimizer.lr_scaling: needs batch_size in place of batch_tokens")
        return self


class Teacher(TrainSpec):
    """A model trained on the labels; its outputs become the knowledge."""

    label_smoothing: Share = 0.0


class Student(TrainSpec):
    """A model trained on labels and teachers' outputs; without teachers it is a from-scratch baseline."""

    teachers: list[Annotated[str, Field(pattern=PATTERN)]] | None = None  # names or patterns; default all; [] none
    rows: Annotated[list[Literal["train", "transfer"]], Field(min_length=1)] | None = None
    losses: Annotated[list[LossSpec], Field(min_length=1)] | None = None


class Knowledge(Closed):
    """What of the teachers' outputs is stored, and how it is computed."""

    # default: logits; of taggers, what the students' losses read
    outputs: Annotated[list[Output], Field(min_length=1)] | None = None
    dtype: Literal["float16", "float32"] = "float16"
    top_k: PositiveInt | None = None  # of the logits, the largest; the rest as one
    precision: Precision = "auto"
    compile: bool = False  # torch.compile the teacher
    unpadded: bool = False  # variable-length attention, on a GPU
    shard_rows: PositiveInt = 4096
    batch_tokens: PositiveInt = 4096


class StageLaunch(Closed):
    processes: PositiveInt | Literal["auto"] | None = None
    accelerate_config: str | None = None


class Launch(Closed):
    """How `dtrain run` starts processes; `stages` overrides it for single stages."""

    processes: PositiveInt | Literal["auto"] = "auto"  # auto: every GPU, else 2 CPU processes
    accelerate_config: str = "ddp"  # a file of accelerate_configs/ by name, or a path
    timeout: PositiveInt = 600  # seconds: ranks to arrive, a collective to end, a rank without a sign of life
    time_limit: PositiveInt | None = None  # seconds, then as if asked to stop; a SLURM job's own is known
    stages: dict[Literal["prepare", "finetune", "precompute", "distill", "evaluate", "report"], StageLaunch] = {}


class Report(Closed):
    latency: bool = True  # rows a second at batch 1 and 64
    splits: Annotated[list[Literal["valid", "test"]], Field(min_length=1)] = ["valid", "test"]


class Recipe(Closed):
    """A whole experiment, from raw text to distilled students."""

    name: str
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    output_dir: str = "runs"
    data: Data
    teachers: list[Teacher] = []
    knowledge: Knowledge = Knowledge()
    students: list[Student] = []
    launch: Launch = Launch()
    report: Report = Report()

    _name = field_validator("name")(check_name)

    @field_validator("output_dir")
    @classmethod
    def a_path(cls, value: str) -> str:
        if not value or "\0" in value:
            raise ValueError(f"must be a folder's path, found {value!r}")
        return value
