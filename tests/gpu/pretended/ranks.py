"""One rank of several on the pretended device, which talk over gloo: `python ranks.py SETTINGS JOBS RESULTS`.

SETTINGS are those of `tests/distributed/engine_worker.py`, which are trained first; JOBS those of `drive.py`, each with its
"way", ddp or fsdp2. Of the jobs, each rank writes what it found to RESULTS-jobs-RANK.json.
"""

from __future__ import annotations

# It loads the backend, which comes before torch.
from tests.gpu.pretended import drive  # isort: skip

import functools
import json
import os
import sys
from pathlib import Path

import dtrain.stages.runner as runner
from dtrain.__main__ import main as dtrain
from dtrain.runtime import distributed
from dtrain.runtime.sharding import Sharding
from tests.distributed import engine_worker


def main() -> None:
    settings, jobs, results = (Path(word) for word in sys.argv[1:4])
    drive.start()
    world = distributed.connect(timeout=300, backend="gloo")
    assert world.device.type == "cuda" and world.size == 2
    runner.connect = lambda **asked: world  # type: ignore[assignment]
    found = {}
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        world.sharding = Sharding(job["way"])
        found[job["name"]] = drive.run(job, dtrain)
        Path(f"{results}-jobs-{world.rank}.json").write_text(json.dumps(found), encoding="utf-8")
        if found[job["name"]]["code"]:
            os._exit(1)  # the other rank would wait
    engine_worker.connect = functools.partial(lambda: world)
    sys.argv = [sys.argv[0], str(settings), str(results)]
    engine_worker.main()  # leaves


if __name__ == "__main__":
    main()
