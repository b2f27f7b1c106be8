"""The registry of stages: what is known of each before its module is imported.

A stage is one module (its page) with a function `run(recipe, world, folder, **options)`, and one entry in `_STAGES` below.
The command line and its help, `dtrain run`, the recipe's `launch.stages`, `dtrain submit` and the scripts in `launch/`
follow from the entry. Pages import torch, which takes seconds; this module imports nothing of the package, so that
`dtrain -h` and the recipe's schema can use it.

A page may also have a function `check(recipe, world)`: it raises InputError for what this launch or machine cannot do,
before anything is written.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dtrain.plan import Plan


@dataclass(frozen=True)
class Option:
    """An option, or a positional argument, of a command: `settings` are those of argparse's `add_argument`.

    With `instead`, the option calls this function of the page with the recipe, and the stage itself does not run.
    """

    flag: str
    settings: dict[str, Any]
    instead: str | None = None

    @property
    def name(self) -> str:
        """Its attribute among the parsed arguments."""
        return self.flag.removeprefix("--").replace("-", "_")


def option(flag: str, *, instead: str | None = None, **settings: Any) -> Option:
    return Option(flag, settings, instead)


@dataclass(frozen=True)
class Job:
    """How a SLURM cluster runs a stage. Consecutive stages whose jobs have the same name share a job."""

    name: str
    nodes: Literal["one", "all"] = "one"  # of those that `dtrain submit --nodes` asks for
    gpus: bool = True  # whether it computes on them
    array: bool = False  # a job for each group of students


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: the word on the command line.
        help: one line for `dtrain -h`.
        done: whether everything that the stage would write is complete for exactly these inputs; imports nothing heavy.
        whole: whether the files that `done` found still have the bytes that were written; for stages whose damaged output
            later stages would refuse or, worse, use. Asked before the stage is skipped, so that damage is repaired.
        job: how a cluster runs it; a stage without one runs only when asked for by name, and writes nothing into
            the run folder.
        ranks: how many processes it takes where the recipe leaves that open and there are no GPUs; see `dtrain.ranks`.
        needs: the stages whose output it reads, complete for this recipe.
        section: the section that a recipe must have to have this stage; None: every recipe has it.
        options: its own options on the command line, passed to the page's `run` by name.
        kept: whether it reads only the run folder, so that this folder may be given in place of a recipe, and the files
            that the recipe names may be gone.
        folders: whether a model folder may be given in place of a recipe: its page has `run_folder(place, world, **options)`.
        page: the module; by default the one of the stage's name in this package.
    """

    name: str
    help: str
    done: Callable[[Plan], bool] = lambda plan: False
    whole: Callable[[Plan], bool] = lambda plan: True
    job: Job | None = None
    ranks: Literal["one", "students", "free"] = "free"
    needs: tuple[str, ...] = ()
    section: str | None = None
    options: tuple[Option, ...] = ()
    kept: bool = False
    folders: bool = False
    page: str | None = None

    @property
    def module(self) -> str:
        """The module's full name."""
        return self.page or f"{__name__}.{self.name}"

    def load(self) -> Any:
        """Import the page."""
        return importlib.import_module(self.module)

    def wanted(self, recipe: Any) -> bool:
        """Whether the recipe has this stage."""
        return self.section is None or getattr(recipe, self.section) is not None


# In the order in which `dtrain run` runs them.
_STAGES = [
    Stage(
        "pretrain",
        "a transformer from plain text: masked whole words, all ranks together",
        done=lambda plan: plan.pretrained(),
        job=Job("pretrain", nodes="all"),
        ranks="one",
        section="pretrain",
    ),
    Stage(
        "prepare",
        "raw files -> normalised, split, encoded rows",
        done=lambda plan: plan.prepared(),
        job=Job("prepare", gpus=False),
        needs=("pretrain",),
    ),
    Stage(
        "finetune",
        "train every teacher, all ranks together",
        done=lambda plan: plan.trained("teachers"),
        whole=lambda plan: plan.models_are_whole("teachers"),
        job=Job("finetune", nodes="all"),
        ranks="one",
        needs=("pretrain", "prepare"),
    ),
    Stage(
        "precompute",
        "every teacher's outputs, once, into the knowledge store",
        done=lambda plan: plan.precomputed(),
        whole=lambda plan: plan.stores_are_whole(),
        job=Job("precompute", nodes="all"),
        ranks="one",
        needs=("prepare", "finetune"),
    ),
    Stage(
        "distill",
        "train every student, placed over the ranks",
        done=lambda plan: plan.trained("students"),
        whole=lambda plan: plan.models_are_whole("students"),
        job=Job("distill", array=True),
        ranks="students",
        needs=("prepare", "precompute"),
        options=(
            option(
                "--plan",
                instead="show_plan",
                action="store_true",
                help="print who would train where; train nothing",
            ),
        ),
    ),
    Stage(
        "evaluate",
        "score every model, each row once over all ranks",
        done=lambda plan: plan.all_evaluated(),
        job=Job("report"),
        kept=True,
        needs=("prepare",),  # and the models; the stage itself names those that are missing
    ),
    Stage(
        "points",
        "which tokens of texts students know at each epoch of their training",
        done=lambda plan: plan.points_counted(),
        job=Job("report"),
        needs=("prepare", "distill"),
        section="knowledge_points",
    ),
    Stage(
        "report",
        "tables, plots and one page that compares teachers and students",
        done=lambda plan: plan.reported(),
        job=Job("report"),
        kept=True,
        needs=("prepare", "points"),  # and the models, as above
    ),
    Stage(
        "export",
        "a trained model as a folder that answers without torch: ONNX, or a program of torch.export",
        kept=True,
        folders=True,
        options=(
            option("--model", help="a teacher's or student's name (default: the best student)"),
            option("--task", help="of a model for several tasks, the one to export"),
            option("--to", choices=("onnx", "torch"), default="onnx", help="the kind of file (default: onnx)"),
            option("--quantize", choices=("int8",), help="weights in 8 bits, for --to onnx"),
            option(
                "--check",
                action="store_true",
                help="compare answers and scores with the model's on the validation rows (on the test rows, where no "
                "validation row has a label)",
            ),
        ),
    ),
    Stage(
        "predict",
        "label or tag new text with a trained model",
        kept=True,
        folders=True,
        options=(
            option("--model", help="a teacher's or student's name (default: the best student)"),
            option("--task", help="of a recipe of several tasks, which to answer (default: the model's only one)"),
            option("--input", help="a file; - is stdin (default: the test rows)"),
            option(
                "--format",
                choices=("jsonl", "tsv", "csv", "parquet", "lines", "conll", "dataset"),
                help="of the input (default: by its suffix, else the recipe's, else plain lines)",
            ),
            option(
                "--columns",
                action="append",
                metavar="text=COLUMN",
                help="of the input (source= of a model that writes), with text_b=, id= and privileged=, comma-separated: names of "
                "a header, or numbers from 0 without one (default: the recipe's)",
            ),
            option(
                "--privileged",
                choices=("given", "predicted"),
                help="of a teacher that reads annotations: those of the input, or those that its annotated_by finds (default: "
                "given)",
            ),
            option("--encoding", help="of the input's text: utf-8, gb18030, ... (default: the recipe's)"),
            option(
                "--delimiter",
                choices=("auto", ",", ";", "|", "tab"),
                help="between columns of an input table (default: the recipe's)",
            ),
            option(
                "--quoting",
                choices=("auto", "quotes", "none"),
                help="quotation marks around a column: markup (quotes) or text (none) (default: the recipe's)",
            ),
            option("--beam", type=int, help="of a model that writes: hypotheses at a time (default: 1, greedily)"),
            option("--length-penalty", type=float, help="of a beam (default: the recipe's, else 1)"),
            option("--output", help="where to write (default: stdout)"),
            option(
                "--form",
                choices=("jsonl", "tsv", "clue", "conll"),
                default="jsonl",
                help="what to write (default: jsonl)",
            ),
        ),
    ),
]


def stages() -> tuple[Stage, ...]:
    """Every stage; those of a run come in the order in which it runs them."""
    return tuple(_STAGES)


def run_names() -> tuple[str, ...]:
    """Names of the stages that `dtrain run` runs, in order."""
    return tuple(stage.name for stage in _STAGES if stage.job is not None)


def find_stage(name: str) -> Stage:
    """The stage of this name; KeyError where there is none."""
    found = next((stage for stage in _STAGES if stage.name == name), None)
    if found is None:
        raise KeyError(name)
    return found


def register(stage: Stage, *, after: str) -> None:
    """Add a stage that comes after the stage `after` in a run; ValueError if its name is taken."""
    if any(stage.name == known.name for known in _STAGES):
        raise ValueError(f"stage {stage.name!r} is registered twice")
    _STAGES.insert(_STAGES.index(find_stage(after)) + 1, stage)


def of_run(recipe: Any) -> list[Stage]:
    """The stages that `dtrain run` runs for this recipe, in order."""
    return [stage for stage in _STAGES if stage.job is not None and stage.wanted(recipe)]


def job_lines(recipe: Any) -> list[str]:
    """The SLURM jobs of a recipe in order, as `launch/slurm/pipeline.sh` reads them.

    Each line is `NAME STAGE[,STAGE...] one|all gpus|cpus`, with `array` at the end where it is divided among
    groups of students.
    """
    found: list[tuple[Job, list[str]]] = []
    for stage in of_run(recipe):
        assert stage.job is not None
        if found and found[-1][0].name == stage.job.name:
            found[-1][1].append(stage.name)
        else:
            found.append((stage.job, [stage.name]))
    return [
        f"{job.name} {','.join(names)} {job.nodes} {'gpus' if job.gpus else 'cpus'}{' array' * job.array}"
        for job, names in found
    ]
