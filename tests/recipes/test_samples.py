"""The made-up headlines: what the generator writes today, no headline in two parts, as hard as they should be."""

import json
from collections import Counter
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import dtrain
from dtrain.recipes.samples.make import ROWS, make

SAMPLES = Path(dtrain.__file__).parent / "recipes" / "samples"


@pytest.fixture(scope="module")
def parts() -> dict[str, list[dict[str, str]]]:
    texts = {part: (SAMPLES / f"{part}.jsonl").read_text(encoding="utf-8") for part in ROWS}
    return {part: [json.loads(line) for line in text.splitlines()] for part, text in texts.items()}


def test_the_generator_writes_the_shipped_bytes(tmp_path):
    make(tmp_path)
    for part in ROWS:
        assert (tmp_path / f"{part}.jsonl").read_bytes() == (SAMPLES / f"{part}.jsonl").read_bytes()


def test_parts_have_their_size_and_share_no_id(parts):
    assert {part: len(rows) for part, rows in parts.items()} == ROWS
    ids = Counter(row["id"] for rows in parts.values() for row in rows)
    assert max(ids.values()) == 1
    assert all("label" not in row for row in parts["transfer"])
    assert sum((SAMPLES / f"{part}.jsonl").stat().st_size for part in ROWS) < 1_500_000


def test_hardly_a_headline_is_in_training_and_test(parts):
    # The clean ones all differ; a dropped character may make two of them equal.
    train = {row["text"] for row in parts["train"]}
    assert sum(row["text"] in train for row in parts["test"]) <= 3


def test_a_bag_of_characters_is_neither_at_chance_nor_perfect(parts):
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)
    train, test = parts["train"], parts["valid"] + parts["test"]
    model = LogisticRegression(max_iter=500).fit(
        vectors.fit_transform([row["text"] for row in train]), [row["label"] for row in train]
    )
    accuracy = model.score(vectors.transform([row["text"] for row in test]), [row["label"] for row in test])
    assert 0.75 < accuracy < 0.84
