"""A tagger that reads annotations beside the text: what they change, padding, its folder, and a student's classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dtrain.errors import InputError
from dtrain.models import build, load, save_model
from dtrain.models.initial import copy_classifier
from dtrain.recipe.architectures.taggers import IdcnnSpec, TaggerSpec

LABELS = ["O", "B-x", "I-x", "E-x", "S-x"]
TYPES = ["who", "where"]
BERT = {"type": "bert", "hidden": 8, "heads": 2, "layers": 1, "intermediate": 8}


def tagger(privileged: int | None = 3, **keys: Any) -> Any:
    torch.manual_seed(3)
    section = {"type": "tagger", "lstm": 4, "dropout": 0.0, **({} if "encoder" in keys else {"embedding": 6}), **keys}
    if privileged:
        section["privileged"] = {"size": privileged}
    spec = TaggerSpec.model_validate(section)
    return build(spec, vocabulary=30, labels=LABELS, pad_id=0, max_length=16, privileged=TYPES).eval()


def inputs(rows: list[list[int]], frame: bool = False) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    more = [2] if frame else []
    ids = [more + row + more + [0] * (longest - len(row)) for row in rows]
    masks = [[1] * (len(row) + 2 * frame) + [0] * (longest - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks)}


@pytest.mark.parametrize("keys", [{}, {"lstm": None}, {"encoder": BERT}, {"encoder": BERT, "lstm": None, "crf": False}])
def test_annotations_change_the_answer_and_padding_does_not(keys: dict[str, Any]) -> None:
    model, frame = tagger(**keys), "encoder" in keys
    one, beside = inputs([[5, 6, 7]], frame), torch.tensor([[1, 3, 0]])
    with torch.no_grad():
        plain = model(**one, privileged=torch.zeros_like(beside), marginals=True)
        told = model(**one, privileged=beside, marginals=True)
        padded = torch.cat([torch.nn.functional.pad(beside, (0, 2)), torch.zeros(1, 5, dtype=torch.int64)])
        batch = model(**inputs([[5, 6, 7], [5, 6, 7, 8, 9]], frame), privileged=padded, marginals=True)
    assert not torch.allclose(plain.logits, told.logits)
    torch.testing.assert_close(batch.logits[0, :3], told.logits[0])
    torch.testing.assert_close(batch.marginals[0, :3], told.marginals[0])
    assert told.states.shape == (1, 3, model.emissions.in_features)
    torch.testing.assert_close(model.emissions(told.states), told.logits)


def test_the_vectors_stand_beside_those_of_the_characters() -> None:
    model = tagger(lstm=None)
    ids, beside = inputs([[5, 6]]), torch.tensor([[4, 8]])  # S of `who`, S of `where`
    with torch.no_grad():
        found = model(**ids, privileged=beside)
        by_hand = torch.cat([model.embedding.weight[[5, 6]], model.privileged.weight[[4, 8]]], dim=1)
    assert torch.equal(found.states[0], by_hand) and model.privileged.num_embeddings == 9
    with torch.no_grad():
        torch.testing.assert_close(found.logits[0], by_hand @ model.emissions.weight.T + model.emissions.bias)


class More(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + 1.0


@pytest.mark.parametrize("keys", [{}, {"lstm": None}, {"encoder": BERT}, {"type": "idcnn"}])
def test_features_are_those_before_the_last_dropout(keys: dict[str, Any]) -> None:
    """After it, a discriminator would tell teacher and student apart by zeros: features are compared while both train."""
    if keys.get("type") == "idcnn":
        spec = IdcnnSpec.model_validate({"type": "idcnn", "embedding": 6, "filters": 5, "blocks": 2})
        model = build(spec, vocabulary=30, labels=LABELS, pad_id=0, max_length=16).train()
    else:
        model = tagger(None, **keys).train()
    model.dropout = More()  # in place of zeros, something that can be told
    seen: list[torch.Tensor] = []
    model.emissions.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found = model(**inputs([[5, 6, 7]], "encoder" in keys))
    torch.testing.assert_close(seen[0], found.states + 1.0)


def test_given_where_they_are_read_and_nowhere_else() -> None:
    with pytest.raises(ValueError, match="privileged: are read, and none given"):
        tagger()(**inputs([[5]]))
    with pytest.raises(ValueError, match="privileged: are not read"):
        tagger(None)(**inputs([[5]]), privileged=torch.zeros(1, 1, dtype=torch.int64))
    assert tagger().reads_beside == ("privileged",) and tagger(None).reads_beside == ()


def test_the_folder_alone_is_the_model_again(tmp_path: Path) -> None:
    model = tagger()
    save_model(model, tmp_path / "t", None, "card")
    assert json.loads((tmp_path / "t" / "config.json").read_text())["privileged"] == {"size": 3, "types": TYPES}
    given = inputs([[5, 6]]) | {"privileged": torch.tensor([[1, 3]])}
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "t")(**given).logits, model(**given).logits)
    plain = tagger(None)  # a folder without the key is one of a model that reads the text alone, as it always was
    save_model(plain, tmp_path / "p", None, "card")
    assert "privileged" not in json.loads((tmp_path / "p" / "config.json").read_text())
    assert load(tmp_path / "p").privileged is None


def test_sections_without_the_new_keys_are_what_they_were() -> None:
    assert not {"privileged", "classifier"} & TaggerSpec.model_validate({"type": "tagger"}).model_dump().keys()
    assert not {"privileged", "classifier"} & IdcnnSpec.model_validate({"type": "idcnn"}).model_dump().keys()
    section = {"type": "tagger", "privileged": {"size": 5}, "lstm": 4}
    assert TaggerSpec.model_validate(section).model_dump()["privileged"] == {"size": 5}


def test_a_classifier_is_copied_whole_or_not_at_all() -> None:
    teacher, student = tagger(), tagger(None, embedding=9)
    torch.nn.init.normal_(teacher.crf.transitions)
    copy_classifier(student, teacher, "students.s.model.classifier: t")
    for name in ("emissions", "crf"):
        theirs = getattr(teacher, name).state_dict()
        assert all(torch.equal(weight, theirs[key]) for key, weight in getattr(student, name).state_dict().items())
    with pytest.raises(
        InputError, match=r"classifier: t: its emissions has the weights .*\[5, 8\].* student .*\[5, 10\]"
    ):
        copy_classifier(tagger(None, lstm=5), teacher, "students.s.model.classifier: t")
    with pytest.raises(InputError, match="classifier: t: its crf has"):
        copy_classifier(tagger(None, crf=False), teacher, "students.s.model.classifier: t")
