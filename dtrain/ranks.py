"""How many processes a stage takes on a machine without GPUs, where a recipe leaves it open (`launch.processes: auto`).

    one        one process with all cores: what is trained together, and knowledge stores
    students   one process for each student that may train at the same time, as far as there are cores
    free       as many as its neighbours, since a launch of its own would cost seconds

Ranks that train together send their gradients round and apply the optimizer once each: two ranks of one core made 2.26 steps
a second of a BERT of 4 layers of 512 at 16 rows, one process with both cores 2.76. A store is filled by threads as well as by
ranks, and threads share one copy of the teacher. What is computed does not depend on the number of processes;
`tests/benchmarks/ranks_speed.py` measures what the choice is worth.
"""

from __future__ import annotations

import psutil

from dtrain.recipe.schema import Recipe

# A student's step takes 1 / threads**0.5 of the time of one thread: a cautious guess. Two BiLSTMs of 512 at 16 rows made 1.09
# times the steps side by side that they made one at a time on both cores; smaller models gain less from threads (1.4, 1.8).
THREADS_PAY = 0.5
BYTES_OF_A_RANK = 2**30  # a process with torch and a student of usual size
SHARDED = 2  # ranks, where a recipe asks for a model to be spread over ranks and says nothing else


def side_by_side(students: int, cores: int, most: int) -> int:
    """Ranks, at most so many, for so many students on `cores` cores, those of a rank being `cores // ranks`.

    The slowest rank trains `ceil(students / ranks)` of them, each faster the more cores the rank has. Of two numbers that
    take equally long it is the larger one.
    """
    if students < 1:
        return 1

    def seconds(ranks: int) -> float:
        return -(-students // ranks) / (cores // ranks) ** THREADS_PAY

    return min(range(min(students, cores, most), 0, -1), key=seconds)


def units(recipe: Recipe) -> int:
    """Students that may train at the same time: peers count as one, and those that all ranks train as none."""
    alone = [student for student in recipe.students if student.parallel != "data"]
    return len({student.name if student.peers is None else f"peers of {student.peers}" for student in alone})


def for_students(recipe: Recipe, cores: int, machines: int = 1) -> int:
    """Ranks on each of `machines` alike, for the recipe's students."""
    room = max(1, psutil.virtual_memory().total // BYTES_OF_A_RANK)
    return side_by_side(-(-units(recipe) // machines), cores, room)


def has_work(recipe: Recipe, stage: str) -> bool:
    """Whether a stage has anything to compute: teachers that are taken as they are need no training."""
    return stage != "finetune" or any(teacher.source is None for teacher in recipe.teachers)
