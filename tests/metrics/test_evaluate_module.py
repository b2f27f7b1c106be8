"""The `evaluate` module loads offline by path and gives the run's own scores."""

import os
import subprocess
import sys
from pathlib import Path

from sklearn.metrics import f1_score

import dtrain

MODULE = Path(dtrain.__file__).parent / "metrics" / "modules" / "classification"
CODE = """
import sys, evaluate
metric = evaluate.load(sys.argv[1])
metric.add_batch(references=[0, 1, 3], predictions=[0, 1, 1])
metric.add_batch(references=[3, 0], predictions=[3, 3])
print(repr(metric.compute()))
"""


def test_loads_offline_by_path_and_equals_scikit_learn(tmp_path):
    # A fresh process: the offline switch and the modules' cache are read when the libraries are imported.
    package = str(Path(dtrain.__file__).parent.parent)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": package}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(MODULE)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = eval(done.stdout.strip().splitlines()[-1])
    gold, predicted = [0, 1, 3, 3, 0], [0, 1, 1, 3, 3]
    assert found["f1"] == f1_score(gold, predicted, average="macro", zero_division=0)
    assert found["f1_weighted"] == f1_score(gold, predicted, average="weighted", zero_division=0)
    assert found["accuracy"] == 0.6 and found["rows"] == 5
