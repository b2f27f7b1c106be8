"""What losses between layers need of a recipe, said before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.errors import InputError
from tests.recipe.test_answers import load


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("accumulation: 2, losses: [{type: similarity_preserving}]",
         r"students\.0\.accumulation: similarity_preserving compares all rows of a batch .*: write 1, and a smaller batch_size"),
        ("phases: [{name: one, accumulation: 2, epochs: 1, losses: [{type: similarity_preserving}]}]",
         r"phases\.0.*accumulation: similarity_preserving compares all rows"),
        ("parallel: data, losses: [{type: gradient_transfer}]",
         r"students\.0\.parallel: 'data' is not for gradient_transfer, which differentiates the student twice \(allowed: null\)"),
        ("activation_checkpointing: true, losses: [{type: gradient_transfer}]",
         r"students\.0\.activation_checkpointing: is not for gradient_transfer"),
        ("losses: [{type: qkv_relations, relation_heads: 12}]",
         r"losses\.0 \(qkv_relations\)\.relation_heads: must divide the widths of both models, 16 and 32, found 12 \(allowed: 1, 2, 4, 8, 16\)"),
        ("losses: [{type: fsp, layers: last}]",
         r"losses\.0 \(fsp\)\.layers: a flow leads from one layer to another: two pairs at least, found 1"),
        ("losses: [{type: attention_kl, layers: [[0, 1]]}]", r"losses\.0 \(attention_kl\)\.layers: the student has no layer 0"),
        ("losses: [{type: hidden_hint}]", r"hidden_hint: layers: field required|losses\.0.*layers"),
        ("losses: [{type: vid, variance: 0}]", r"variance: input should be greater than 0"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, student: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, f"model: BERT, teachers: [t], {student}")


def test_heads_that_must_agree(tmp_path: Path) -> None:
    bert = "{type: bert, hidden: 16, layers: 2, heads: 2, tokenizer: t}"
    for loss in ("attention_mse", "attention_kl", "value_relations"):
        with pytest.raises(
            InputError, match=rf"\({loss}\): compares head by head, .* 2 attention heads, its teacher 4; give"
        ):
            load(tmp_path, f"model: {bert}, teachers: [t], losses: [{{type: {loss}}}]")  # fmt: skip
    load(tmp_path, f"model: {bert}, teachers: [t], losses: [{{type: qkv_relations, relation_heads: 8}}]")


def test_a_sharded_teacher_is_not_differentiated(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="differentiates its teacher, which knowledge.sharded cuts up"):
        load(
            tmp_path,
            "model: BERT, teachers: [t], losses: [{type: gradient_transfer}]",
            more="knowledge: {sharded: true}",
        )


def test_taggers_have_every_loss_but_that_on_the_label_of_a_text(tmp_path: Path) -> None:
    for loss in ("vid", "similarity_preserving", "qkv_relations, relation_heads: 4", "attention_kl", "embedding_mse"):
        load(tmp_path, f"model: BERT, teachers: [t], losses: [{{type: {loss}}}, {{type: tag_likelihood}}]", "tagging")
    with pytest.raises(InputError, match=r"\(gradient_transfer\): is not for task 'tagging'"):
        load(tmp_path, "model: BERT, teachers: [t], losses: [{type: gradient_transfer}]", "tagging")
