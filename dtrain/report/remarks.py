"""What should make a reader doubt a model: scores that one learns nothing from."""

from __future__ import annotations

from typing import Any

from dtrain.plan import Plan
from dtrain.runfolder import is_done, read_json
from dtrain.tasks.kinds import VIEWS


def remarks_on(kind: str, plan: Plan) -> list[str]:
    """A line for each trained teacher or student (`kind` is 'teachers' or 'students') that learnt nothing.

    By its scores on the validation rows, which chose its weights.
    """
    view = VIEWS[plan.recipe.data.task]
    counts = read_json(plan.folder.data / "rows" / "data.json").get("label_counts", {}).get("valid", {})
    found = []
    for member_kind, member in plan.members():
        place = plan.folder.model(kind, member.name)
        if member_kind != kind or not is_done(place, plan.model(kind, member.name)):
            continue
        doubt = view.doubt(read_json(place / "metrics.json"), counts)
        if doubt:
            found.append(f"{kind[:-1]} {member.name}: {doubt}{_pupils(kind, member.name, plan)}")
    return found


def _pupils(kind: str, name: str, plan: Plan) -> str:
    if kind != "teachers":
        return ""
    pupils: list[Any] = [student.name for student in plan.recipe.students if name in (student.teachers or [])]
    if not pupils:
        return ""
    shown = ", ".join(pupils[:3]) + (f" and {len(pupils) - 3} more" if len(pupils) > 3 else "")
    return f"; learning from it: {shown}"
