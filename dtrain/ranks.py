"""How many processes a stage takes on a machine without GPUs, where a recipe leaves it open (`launch.processes: auto`).

    one        one process with all cores, for models that all ranks train together and for knowledge stores
    students   one process for each student that may train at the same time, as far as there are cores
    free       as many as the stage before or after it, since a launch of its own would take seconds

Ranks that train one model together exchange gradients, and each applies the optimizer: two ranks of one core each made 2.26
steps a second of a BERT with 4 layers of width 512 (batches of 16 rows), and one process with both cores 2.76. A store
can be filled by threads instead of ranks, and threads share one copy of the teacher. What is computed does not depend on the
number of processes; `tests/benchmarks/ranks_speed.py` measures what the choice gains.
"""

from __future__ import annotations

import psutil

from dtrain.recipe.schema import Recipe

# A student's step is taken to be threads**0.5 times as fast as on one thread, a cautious guess. Side by side, two BiLSTMs of
# width 512 (batches of 16 rows) made 1.09 times the steps that they made one after the other on both cores; with smaller
# models, which gain less from threads, it was 1.4 and 1.8 times.
THREADS_PAY = 0.5
BYTES_OF_A_RANK = 2**30  # a process with torch and a student of usual size
SHARDED = 2  # ranks, where a recipe asks for models to be sharded and leaves the number of processes open


def side_by_side(students: int, cores: int, most: int) -> int:
    """The number of ranks, at most `most`, that trains `students` students soonest on `cores` cores.

    Each rank has `cores // ranks` cores. The slowest rank trains `ceil(students / ranks)` students, each the faster the more
    cores the rank has. Of several numbers that take equally long, the largest is returned.
    """
    if students < 1:
        return 1

    def seconds(ranks: int) -> float:
        return -(-students // ranks) / (cores // ranks) ** THREADS_PAY

    return min(range(min(students, cores, most), 0, -1), key=seconds)


def units(recipe: Recipe) -> int:
    """How many students may train at the same time: peers count as one, and those that all ranks train do not count."""
    alone = [student for student in recipe.students if student.parallel != "data"]
    return len({student.name if student.peers is None else f"peers of {student.peers}" for student in alone})


def for_students(recipe: Recipe, cores: int, machines: int = 1) -> int:
    """The number of ranks on each of `machines` equal machines for the recipe's students."""
    room = max(1, psutil.virtual_memory().total // BYTES_OF_A_RANK)
    return side_by_side(-(-units(recipe) // machines), cores, room)


def has_work(recipe: Recipe, stage: str) -> bool:
    """Whether a stage has anything to compute: teachers that are taken as they are need no training."""
    return stage != "finetune" or any(teacher.source is None for teacher in recipe.teachers)
