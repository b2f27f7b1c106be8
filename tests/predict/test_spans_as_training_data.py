"""What predict writes of spans can be read as training data, whatever their ends mean."""

import json

import pytest

from dtrain.data.schemes import Span
from dtrain.recipe.data import Data
from dtrain.tasks.answers import Texts
from dtrain.tasks.corpus import read_corpus
from dtrain.tasks.tagging.answers import Spans

TEXT = "阿里巴巴集团张三在北京大学读书"
FOUND = [(0, 6, "ORG"), (6, 8, "PER"), (9, 13, "ORG")]
ANSWER = [
    {"text": TEXT[start:end], "type": kind, "start": start, "end": end, "score": 0.9} for start, end, kind in FOUND
]


class Prepared:
    """As much of the prepared data as the lines of answers need."""

    def __init__(self, span_end):
        self.info = {"span_end": span_end}


def written(span_end):
    texts = Texts([0, 1], [TEXT, TEXT], [], [1, 2])
    return list(Spans().lines(texts, [ANSWER, []], "jsonl", None, Prepared(span_end)))


@pytest.mark.parametrize("span_end", ["inclusive", "exclusive", None])
@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("with_text", [True, False])
def test_answers_are_training_data(tmp_path, span_end, said, with_text):
    """Ends are as in the recipe's files, so that the same recipe reads them; without it, most spans tell what they are."""
    if span_end is None and said:
        pytest.skip("the recipe says nothing")
    rows = [json.loads(line) for line in written(span_end)]
    if not with_text:
        for span in rows[0]["spans"]:
            del span["text"]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = {"label": "spans"} | ({"span_end": span_end} if said else {})
    corpus = read_corpus(
        Data.model_validate({"task": "tagging", "train": str(path), "columns": columns, "split": {"valid": 0}}), 0
    )
    assert corpus.parts["train"].spans == [[Span(*span) for span in FOUND], []]
    assert corpus.span_end == (span_end or "exclusive")


def test_ends_are_those_of_the_recipes_files():
    first = [span["end"] for span in json.loads(written("inclusive")[0])["spans"]]
    assert first == [5, 7, 12]
    for other in ("exclusive", None):  # files without spans, as CoNLL's: as slices have it
        assert [span["end"] for span in json.loads(written(other)[0])["spans"]] == [6, 8, 13]
