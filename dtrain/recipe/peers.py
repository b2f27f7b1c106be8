"""Students that learn from each other: the settings that must be equal in all of them."""

from __future__ import annotations

from dtrain.recipe.context import Context, Reporter
from dtrain.recipe.training import Student


def check_peers(students: list[Student], contexts: list[Context], reports: list[Reporter]) -> bool:
    """Report students that learn from each other, but cannot make every step together, on the same batch.

    Returns:
        Whether there are students that learn from each other.
    """
    sets: dict[str, list[tuple[Student, Reporter, Context]]] = {}
    for student, report, context in zip(students, reports, contexts, strict=True):
        if student.peers is not None:
            sets.setdefault(student.peers, []).append((student, report, context))
    for name, members in sets.items():
        first, report, context = members[0]
        of_set = report.at("peers", told=name)
        if "peers" in context.task.excluded:
            of_set("", f"is not for task {context.data_task!r}")
        if len(members) == 1:
            of_set("", f"{first.name} is alone; peers are two students or more with the same word")
        for student, report, _ in members:
            own = report.at(told=student.name)
            if student.tokenizer != first.tokenizer:
                own("model", f"peers read the same tokens, and those of {first.name} are others; see model.tokenizer")
            for key in ("patience", "adversarial", "parallel", "noisy"):
                if getattr(student, key) is not None:
                    own(key, "is not for peers, who make every step together")
            shared = ("teachers",) if student.reads is not None else ()  # the teachers decide which rows are used
            for key in (*shared, "task", "rows", "epochs", "batch_size", "batch_tokens", "accumulation", "precision"):
                if getattr(student, key) != getattr(first, key):
                    own(key, f"must be that of its peer {first.name}, as they share each batch")
            if student.reads is not None and _learns_from(student) != _learns_from(first):
                own(
                    "losses",
                    f"learn from other rows than those of its peer {first.name} (with a label, answered by a teacher, or "
                    "all), and peers share each batch",
                )
    return bool(sets)


def _learns_from(student: Student) -> set[str] | None:
    """What its losses ask of rows of several sides to learn from them: answers of these teachers, or a label.

    None where a loss learns from every row; see `useful_rows` in training/members.py.
    """
    terms = student.all_losses
    if any(not term.loss.hard and not term.loss.teacher_output for term in terms):
        return None
    readers = [term for term in terms if term.loss.teacher_output]
    return {name for name in student.teachers or [] if any(t.teachers is None or name in t.teachers for t in readers)}
