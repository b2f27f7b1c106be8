"""The `evaluate` modules load offline by path: of classes with the run's own scores, of tags with seqeval's strict ones in
every scheme."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities
from sklearn.metrics import f1_score

import dtrain

MODULES = Path(dtrain.__file__).parent / "metrics" / "modules"
# The scheme's prefixes; bmes is bioes with another letter, which seqeval does not have.
SCHEMES = {
    "iob1": (IOB1, "BI"),
    "bio": (IOB2, "BI"),
    "bioes": (IOBES, "BIES"),
    "bmes": (IOBES, "BMES"),
    "bilou": (BILOU, "BILU"),
}
CODE = """
import json, sys, evaluate
metric = evaluate.load(sys.argv[1] + "/classification")
metric.add_batch(references=[0, 1, 3], predictions=[0, 1, 1])
metric.add_batch(references=[3, 0], predictions=[3, 1])
found = {"classes": metric.compute()}
metric = evaluate.load(sys.argv[1] + "/tagging")
for scheme, (references, predictions) in json.load(sys.stdin).items():
    for start in range(0, len(references), 7):
        metric.add_batch(references=references[start:start + 7], predictions=predictions[start:start + 7])
    found[scheme] = metric.compute(scheme=scheme)
metric.add_batch(references=[["O", "O"]], predictions=[["O"]])
try:
    metric.compute()
except ValueError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


def random_tags(letters, made):
    """Runs of tags, of which about half are whole entities."""
    tags = ["O", *(f"{letter}-{kind}" for letter in letters for kind in ("PER", "LOC"))]
    gold = [made.choices(tags, k=made.randint(0, 12)) for _ in range(60)]
    return gold, [[tag if made.random() < 0.7 else made.choice(tags) for tag in row] for row in gold]


@pytest.fixture(scope="module")
def given():
    made = random.Random(1)
    return {scheme: random_tags(letters, made) for scheme, (_, letters) in SCHEMES.items()}


@pytest.fixture(scope="module")
def found(given, tmp_path_factory):
    # A fresh process, one for both: the offline switch and the modules' cache are read when the libraries are imported.
    home = tmp_path_factory.mktemp("home")
    package = str(Path(dtrain.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(MODULES)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "PYTHONPATH": package},
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_equals_scikit_learn(found):
    gold, predicted, scores = [0, 1, 3, 3, 0], [0, 1, 1, 3, 1], found["classes"]
    assert scores["f1"] == f1_score(gold, predicted, average="macro", zero_division=0)
    assert scores["f1_weighted"] == f1_score(gold, predicted, average="weighted", zero_division=0)
    assert scores["accuracy"] == 0.6 and scores["rows"] == 5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_equals_seqeval(given, found, scheme):
    reference, _ = SCHEMES[scheme]
    gold, predicted = ([[tag.replace("M-", "I-") for tag in row] for row in rows] for rows in given[scheme])

    def wanted(average):
        return precision_recall_fscore_support(gold, predicted, average=average, scheme=reference, zero_division=0)

    scores = found[scheme]
    assert [scores[key] for key in ("precision", "recall", "f1", "entities")] == list(wanted("micro"))
    assert [scores[key] for key in ("precision_macro", "recall_macro", "f1_macro")] == list(wanted("macro")[:3])
    assert scores["f1_weighted"] == wanted("weighted")[2]
    names = sorted(Entities(gold, reference).unique_tags | Entities(predicted, reference).unique_tags)
    assert list(scores["per_type"]) == names == ["LOC", "PER"]
    each = [list(row.values()) for row in scores["per_type"].values()]
    assert each == [list(row) for row in zip(*wanted(None), strict=True)]
    assert 0.2 < scores["f1"] < 0.95


def test_lengths_must_agree(found):
    assert found["error"] == "sequence 0 has 2 references and 1 predictions"
