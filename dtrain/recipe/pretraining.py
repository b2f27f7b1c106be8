"""The section `pretrain`: masked language modelling on plain text, with next-sentence prediction where asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from dtrain.recipe.context import Reporter
from dtrain.recipe.models import PRETRAIN, EncoderModel
from dtrain.recipe.training import OptimizerSpec, ScheduleSpec, TrainSpec
from dtrain.recipe.values import Closed, Column, FilePath, Paths, Positive, Precision


class CorpusSource(Closed):
    """Text to pre-train on: files (globs too), a folder of .txt and .jsonl files, a `datasets` folder, or hub:name.

    Where `format` is set, every file in a folder is read, but for names that begin with a dot or an underscore.
    """

    path: FilePath
    format: Literal["auto", "lines", "jsonl", "tsv", "csv", "dataset"] = "auto"  # auto: by suffix
    column: Column = "text"  # of every format but plain lines
    header: bool = True  # of tables
    documents: Literal["blank", "line"] = "blank"  # plain lines: a blank line ends a document, or every line is one
    repeat: Annotated[int, Field(ge=1, le=100)] = 1  # times an epoch, for text closer to the task than the rest


class CorpusSpec(Closed):
    """Where the text is, what may not be in it, and how it is cut."""

    sources: Annotated[list[CorpusSource], Field(min_length=1)]
    exclude: Paths = []  # files whose rows are kept out, as those of data.valid and data.test are
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01  # share of the documents kept for the perplexity
    dictionary: FilePath | None = None  # words for jieba, one a line: `word [count [tag]]`
    separate: bool = False  # a token attends to its own document only

    @field_validator("sources", mode="before")
    @classmethod
    def paths_alone(cls, value: Any) -> Any:
        listed = value if isinstance(value, list) else [value]
        return [{"path": source} if isinstance(source, str) else source for source in listed]


class MaskingSpec(Closed):
    """Which tokens are predicted: of them, 80 % become [MASK], 10 % a random token, and 10 % stay."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    ngram: Annotated[int, Field(ge=1, le=10)] = 1  # the longest sequence of words that is masked together


class Phase(Closed):
    """A phase of pre-training with rows of one length; each starts with a new optimizer."""

    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    epochs: PositiveInt = 1
    batch_size: PositiveInt = 256  # rows per optimizer step over all ranks
    accumulation: PositiveInt = 1
    clip: Positive | None = 1.0
    optimizer: OptimizerSpec = OptimizerSpec(type="lamb", lr=6.25e-4, lr_scaling="sqrt", reference_batch=512)
    schedule: ScheduleSpec = ScheduleSpec(type="polynomial", warmup=1 / 320)
    evaluate_every: PositiveInt | None = None  # steps; default: once an epoch
    checkpoint_every: PositiveInt | None = None


class Pretrain(Closed):
    """Masked language modelling on plain text; a teacher or student with `pretrained: pretrain` starts from the result."""

    model: EncoderModel
    corpus: CorpusSpec
    masking: MaskingSpec = MaskingSpec()
    next_sentence: bool = False  # rows are pairs of texts; also predict whether the second follows the first
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None  # default: the recipe's
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    phases: Annotated[list[Phase], Field(min_length=1)] = [Phase()]

    @model_validator(mode="after")
    def texts_of_a_pair_meet(self) -> Pretrain:
        if self.next_sentence and self.corpus.separate:
            raise ValueError(
                "next_sentence: not together with corpus.separate, which hides one text of a pair from the other"
            )
        return self

    def resolve(self, seed: int, report: Reporter) -> None:
        """Fill in the seed, and check that the model does not start from itself."""
        self.seed = seed if self.seed is None else self.seed
        if self.model.pretrained == PRETRAIN:
            report("model.pretrained", f"{PRETRAIN!r} is what this section makes; name another model, or leave it out")

    def training(self, number: int) -> TrainSpec:
        """Phase `number` (from 0) as a specification for the training loop."""
        assert self.seed is not None
        phase = self.phases[number]
        return TrainSpec(
            name=f"phase-{number + 1}",
            model=self.model,
            seed=(self.seed + number) % 2**31,  # else phases of one length would see the same batches and masks
            precision=self.precision,
            activation_checkpointing=self.activation_checkpointing,
            metric="loss",
            **{name: getattr(phase, name) for name in Phase.model_fields if name != "max_length"},
        )
