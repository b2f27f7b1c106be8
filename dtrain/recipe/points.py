"""The section `knowledge_points`: which tokens of texts students know, at each epoch of their training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from dtrain.recipe.values import Closed, Column, NamedPath, Positive

if TYPE_CHECKING:
    from dtrain.recipe.context import Context, Reporter
    from dtrain.recipe.training import Student


class KnowledgePoints(Closed):
    """Tokens that students read closely, counted over their training (Cheng et al., CVPR 2020).

    A token is a knowledge point if its embedding tolerates less noise than those of the background do. Students with
    `keep_epochs` are measured.
    """

    # column with the words of a text that matter for its label (its foreground): a list of words, or one text
    keywords: Column | None = None
    separator: Annotated[str, Field(min_length=1)] = ","  # what separates the words in a column that holds one text
    words: NamedPath | None = None  # a file of words that matter in every text, one per line, in place of a column
    part: Literal["train", "valid", "test"] = "valid"  # the part whose texts are measured
    rows: Annotated[int, Field(ge=2)] = 100  # texts that are measured, evenly spread over those that have a foreground
    # how far noise may move the vector before the classifier, as a share of the variance of that vector over texts
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    # how far, in nats, the entropy of a knowledge point is below the mean of the background
    threshold: Positive = 0.2
    steps: PositiveInt = 50  # gradient steps in which the noise of a text is found
    samples: PositiveInt = 4  # draws of noise in each step

    @model_validator(mode="after")
    def one_foreground(self) -> KnowledgePoints:
        if self.keywords is not None and self.words is not None:
            raise ValueError("words: not together with keywords")
        if self.keywords is None and self.words is None:
            raise ValueError("keywords: name the column with a text's words, or in `words` a file of them")
        return self

    def check(self, students: list[Student], contexts: list[Context], several: bool, report: Reporter) -> None:
        """Report why knowledge points cannot be measured; `contexts` are those of the students' tasks."""
        if several:
            report("", "is for a recipe of one task")
            return
        if not any(student.keep_epochs for student in students):
            report("", "no student keeps its epochs; give those to be measured keep_epochs: true")
        for context in contexts[:1]:
            if context.task.tags or context.task.writes:
                report("", f"is for tasks whose models have one vector a text, not for {context.data_task!r}")


def check_kept(student: Student, report: Reporter) -> None:
    """Report a student whose epochs cannot be kept."""
    if student.keep_epochs and student.tasks is not None:
        report("keep_epochs", "is not for a student of several tasks")
