"""One recipe a kind of task, small, with every loss, optimizer, precision and way to train side by side among them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMMON = "seed: 5\noutput_dir: {folder}/runs\nlaunch: {{processes: 1}}\nreport: {{latency: false}}\n"

CLASSIFICATION = """\
name: topics
data:
  train: {folder}/train.jsonl
  test: {folder}/test.jsonl
  transfer: {folder}/more.txt
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
teachers:
  - &teacher
    name: cnn
    model: {{type: textcnn, embedding: 12, filters: 8, dropout: 0.1}}
    epochs: 1
    batch_size: 10
    precision: bf16
    adversarial: {{type: pgd}}
  - <<: *teacher
    name: bert
    domain_adversary: {{hidden: 4}}
    model: {{type: bert, size: tiny, hidden: 16, heads: 2, vocabulary_size: 100}}
    accumulation: 2
    precision: fp16
    optimizer: {{type: lamb, lr: 0.01}}
    adversarial: {{type: fgm}}
  - <<: *teacher
    name: nezha
    model: {{type: nezha, size: tiny, hidden: 16, heads: 2, vocabulary_size: 100}}
    precision: fp16
    activation_checkpointing: true
    adversarial: {{type: fgsm}}
knowledge: {{shard_rows: 64, batch_tokens: 256, outputs: [logits, features]}}
students:
  - &student
    name: stack
    model: {{type: bilstm, embedding: 8, hidden: 8}}
    epochs: 1
    batch_size: 16
    precision: fp32
    clip: 1.0
    losses: [{{type: soft_targets, weighting: average}}, {{type: cross_entropy}}]
    grid: {{seed: [1, 2]}}
  - <<: *student
    name: cnns
    model: {{type: textcnn, embedding: 8, filters: 8}}
    optimizer: {{type: sgd, lr: 0.1}}
    losses: [{{type: logit_regression, weighting: confidence}}, {{type: top_gap, weight: 0.1}}]
  - <<: *student
    name: peer
    peers: together
    model: {{type: textcnn, embedding: 8, filters: 8}}
    losses: [{{type: soft_targets, weighting: average}}, {{type: cross_entropy}}]
    teachers: [cnn, bert]
  - <<: *student
    name: rcnn
    model: {{type: text_rcnn, embedding: 8, hidden: 8}}
    precision: bf16
    losses: [{{type: cosine, weighting: entropy}}, {{type: teacher_annealing}}, {{type: reverse_soft_targets}}]
    grid: {{}}
  - <<: *student
    name: hints
    model: {{type: bilstm, embedding: 8, hidden: 8}}
    precision: fp16
    teachers: [bert]
    losses:
      - {{type: feature_hint}}
      - {{type: feature_cosine}}
      - {{type: soft_targets}}
      - {{type: domain_adversary, between: labels, hidden: 4}}
    grid: {{}}
  - <<: *student
    name: words
    model: {{type: fasttext, embedding: 8, buckets: 100}}
    losses: [{{type: soft_targets, weighting: gradient}}, {{type: cross_entropy}}]
  - <<: *student
    name: exits
    model: {{type: multi_exit, encoder: {{type: bert, size: tiny, hidden: 16, heads: 2, vocabulary_size: 100}}, exits: [1, 2]}}
    losses: [{{type: exits_cross_entropy}}, {{type: exits_distillation}}, {{type: soft_targets}}]
    grid: {{}}
"""

PAIRS = """\
name: pairs
data:
  task: pairs
  train: {folder}/pairs.jsonl
  columns: {{text: a, text_b: b, label: label}}
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
teachers:
  - &teacher
    name: bert
    model: {{type: bert, size: tiny, hidden: 16, heads: 2, vocabulary_size: 100}}
    epochs: 1
    batch_size: 10
    precision: bf16
  - <<: *teacher
    name: filters
    model: {{type: bert_cnn, encoder: {{type: nezha, size: tiny, hidden: 16, heads: 2, vocabulary_size: 100}}, filters: 4}}
    precision: fp32
students:
  - name: siamese
    model: {{type: siamese, embedding: 8, hidden: 8}}
    epochs: 1
    batch_size: 10
    precision: fp16
"""

TAGGING = """\
name: tags
data:
  task: tagging
  train: {folder}/train.bmes
  transfer: {folder}/more.txt
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
  max_length: 24
teachers:
  - &teacher
    name: nezha
    model: {{type: tagger, encoder: {{type: nezha, size: tiny, hidden: 16, heads: 2}}, fusion: dynamic, lstm: 8}}
    epochs: 1
    batch_size: 10
    precision: bf16
    optimizer: {{lr: 0.01, modules: {{encoder: 0.003, crf: 0.05}}}}
    adversarial: {{type: fgm}}
    accumulation: 2
  - <<: *teacher
    name: bert
    model: {{type: tagger, encoder: {{type: bert, size: tiny, hidden: 16, heads: 2}}}}
    precision: fp16
    optimizer: {{lr: 0.01}}
    adversarial:
knowledge: {{shard_rows: 64, batch_tokens: 256}}
students:
  - &student
    name: cnn
    model: {{type: idcnn, embedding: 8, filters: 8}}
    epochs: 1
    batch_size: 16
    losses: [{{type: tag_likelihood}}, {{type: marginal_matching}}, {{type: emission_regression, weight: 0.01}}]
  - <<: *student
    name: scratch
    model: {{type: tagger, embedding: 8, lstm: 8, crf: false}}
    teachers: []
    losses: [{{type: tag_likelihood}}]
"""

INFORMED = """\
name: informed
tasks:
  places: &rows
    task: tagging
    train: {folder}/informed.bmes
    split: {{valid: 0.2}}
    vocabulary: {{min_count: 1}}
    max_length: 24
    columns: {{label: 1, privileged: 2}}
  particles: {{<<: *rows, columns: {{label: 2}}}}
teachers:
  - &teacher
    name: informed
    task: places
    model: {{type: tagger, embedding: 8, lstm: 8, privileged: {{size: 4}}}}
    annotated_by: finder
    epochs: 1
    batch_size: 10
    precision: fp16
  - {{<<: *teacher, name: finder, task: particles, model: {{type: tagger, embedding: 8, lstm: 8}}, annotated_by: null}}
students:
  - &student
    name: staged
    task: places
    model: {{type: tagger, embedding: 8, lstm: 8, classifier: informed}}
    teachers: [informed]
    batch_size: 16
    precision: fp16
    phases:
      - {{name: classifier, losses: [{{type: tag_likelihood}}], freeze: [emissions, crf], epochs: 1}}
      - {{name: discriminator, losses: [{{type: imitation}}], train: [], epochs: 1}}
      - {{name: both, losses: [{{type: tag_likelihood}}, {{type: imitation, weight: 0.1}}], epochs: 2, accumulation: 2}}
  - <<: *student
    name: turned
    precision: bf16
    answers: online
    phases: null
    epochs: 1
    losses: [{{type: tag_likelihood}}, {{type: imitation, mode: reversal}}]
"""

PRETRAINING = """\
name: pre
pretrain:
  precision: fp16
  model: {{type: bert, size: tiny, hidden: 16, heads: 2, vocabulary_size: 100}}
  corpus: {{sources: [{{path: {folder}/documents.txt, documents: blank}}], held_out: 0.3}}
  next_sentence: true
  phases:
    - {{max_length: 32, epochs: 1, batch_size: 10, accumulation: 2, optimizer: {{type: lamb, lr: 0.01}}}}
    - {{max_length: 40, epochs: 1, batch_size: 8, optimizer: {{type: adamw, lr: 0.002}}}}
data:
  train: {folder}/train.jsonl
  split: {{valid: 0.2}}
teachers:
  - {{name: teacher, model: {{type: bert, pretrained: pretrain}}, epochs: 1, batch_size: 10}}
students:
  - name: general
    model: {{type: bert, layers: 1, hidden: 16, heads: 2, tokenizer: teacher}}
    batch_size: 10
    phases:
      - {{name: general, rows: [corpus], epochs: 1, losses: [{{type: mlm}}, {{type: vocabulary_kl}}, {{type: hidden_mse}}]}}
      - {{name: task, epochs: 1}}
"""

REGRESSION = """\
name: numbers
data:
  task: regression
  standardize: true
  train: {folder}/numbers.jsonl
  columns: {{text: a, text_b: b, label: score}}
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
teachers:
  - &teacher
    name: bert
    model: {{type: bert, size: tiny, hidden: 16, heads: 2, vocabulary_size: 100}}
    epochs: 1
    batch_size: 10
    precision: bf16
  - <<: *teacher
    name: words
    model: {{type: fasttext, embedding: 8, buckets: 100}}
    precision: fp16
students:
  - &student
    name: stack
    model: {{type: bilstm, embedding: 8, hidden: 8}}
    epochs: 1
    batch_size: 10
    grid: {{seed: [1, 2]}}
  - <<: *student
    name: siamese
    model: {{type: siamese, embedding: 8, hidden: 8}}
    precision: fp16
    losses: [{{type: number_annealing}}, {{type: logit_regression, weighting: average}}]
    grid: {{}}
"""

MULTI_LABEL = """\
name: sets
data:
  task: multi_label
  train: {folder}/sets.jsonl
  transfer: {folder}/more.txt
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
teachers:
  - name: bert
    model: {{type: bert, size: tiny, hidden: 16, heads: 2, vocabulary_size: 100}}
    epochs: 1
    batch_size: 10
    precision: fp16
students:
  - &student
    name: stack
    model: {{type: textcnn, embedding: 8, filters: 8}}
    epochs: 1
    batch_size: 10
    grid: {{seed: [1, 2]}}
  - <<: *student
    name: annealed
    model: {{type: text_rcnn, embedding: 8, hidden: 8}}
    precision: bf16
    losses: [{{type: label_set_annealing}}, {{type: soft_label_sets, weighting: average}}]
    grid: {{}}
"""

LAYERS = """\
name: layers
data:
  train: {folder}/train.jsonl
  split: {{valid: 0.2}}
teachers:
  - {{name: nezha, model: {{type: nezha, size: tiny, hidden: 16, heads: 2, vocabulary_size: 100}}, epochs: 1, batch_size: 10}}
students:
  - &student
    name: states
    model: {{type: bert, layers: 2, hidden: 8, heads: 2, tokenizer: nezha}}
    epochs: 1
    batch_size: 10
    accumulation: 2
    losses:
      - {{type: soft_targets}}
      - {{type: hidden_mse}}
      - {{type: hidden_cosine}}
      - {{type: hidden_hint, layers: [[1, 1]]}}
      - {{type: embedding_mse}}
      - {{type: vid, weight: 0.01}}
      - {{type: fsp}}
      - {{type: attention_transfer}}
    grid: {{seed: [1, 2]}}
  - <<: *student
    name: relations
    model: {{type: nezha, layers: 1, hidden: 16, heads: 2, tokenizer: nezha, init: {{from: nezha, every: 2}}}}
    accumulation: 1
    precision: fp16
    losses:
      - {{type: cross_entropy}}
      - {{type: attention_mse}}
      - {{type: attention_kl}}
      - {{type: value_relations}}
      - {{type: qkv_relations, relation_heads: 4}}
      - {{type: similarity_preserving}}
    grid: {{}}
  - <<: *student
    name: gradients
    precision: bf16
    answers: online
    losses: [{{type: cross_entropy}}, {{type: gradient_transfer}}, {{type: soft_targets}}]
    grid: {{}}
"""

SEVERAL = """\
name: several
tasks:
  topic: {{train: {folder}/train.jsonl, transfer: {folder}/more.txt, split: {{valid: 0.2}}}}
  like:
    task: regression
    train: {folder}/numbers.jsonl
    columns: {{text: a, text_b: b, label: score}}
    split: {{valid: 0.2}}
  names: {{task: tagging, train: {folder}/train.bmes, split: {{valid: 0.2}}, max_length: 24}}
teachers:
  - {{name: cnn, task: topic, model: {{type: textcnn, embedding: 8, filters: 8}}, epochs: 1, batch_size: 10, precision: bf16}}
  - {{name: tagger, task: names, model: {{type: tagger, embedding: 8, lstm: 8}}, epochs: 1, batch_size: 10}}
students:
  - &student
    name: half
    tasks: [topic, like, names]
    mixing: {{temperature: 2}}
    model: {{type: multi_task, encoder: {{type: bert, size: tiny, hidden: 16, heads: 2, vocabulary_size: 100}}}}
    epochs: 1
    batch_size: 10
    precision: fp16
    losses: {{topic: [{{type: teacher_annealing}}], like: [{{type: squared_error}}]}}
  - <<: *student
    name: moved
    precision: bf16
    adversarial: {{type: fgm}}
"""

# Of two ranks: recurrent weights, layers that are computed again, micro-batches, both passes of an adversary.
SPREAD = """\
name: spread
data:
  train: {folder}/train.jsonl
  transfer: {folder}/more.txt
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
teachers:
  - &teacher
    name: rcnn
    model: {{type: text_rcnn, embedding: 8, hidden: 8}}
    epochs: 1
    batch_size: 10
    precision: bf16
    clip: 1.0
  - <<: *teacher
    name: nezha
    model: {{type: nezha, size: tiny, hidden: 16, heads: 2, vocabulary_size: 100}}
    precision: fp16
    accumulation: 2
    activation_checkpointing: true
    optimizer: {{type: lamb, lr: 0.01}}
    adversarial: {{type: fgm}}
knowledge: {{shard_rows: 32, batch_tokens: 256}}
students: [{{name: none, model: {{type: textcnn}}}}]
"""

WRITTEN = """\
name: written
data:
  task: seq2seq
  train: {folder}/written.jsonl
  columns: {{source: source, target: target}}
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
  max_length: 16
teachers:
  - name: big
    model: {{type: marian, hidden: 16, layers: 1, heads: 2, intermediate: 32, vocabulary_size: 100}}
    epochs: 3
    batch_size: 10
    precision: fp16
    label_smoothing: 0.1
knowledge: {{outputs: [token_logits, sequences], top_k: 4, beam: 2, shard_rows: 64}}
students:
  - &student
    name: words
    model: {{type: marian, hidden: 8, layers: 1, heads: 2, intermediate: 16, tokenizer: big}}
    epochs: 1
    batch_size: 16
    precision: fp32
    losses: [{{type: token_cross_entropy, label_smoothing: 0.1}}, {{type: word_level}}]
  - {{<<: *student, name: sequences, rows: [train, sequences], losses: [{{type: token_cross_entropy}}]}}
"""

RECIPES = {
    "several": SEVERAL,
    "layers": LAYERS,
    "classification": CLASSIFICATION,
    "pairs": PAIRS,
    "regression": REGRESSION,
    "multi_label": MULTI_LABEL,
    "tagging": TAGGING,
    "informed": INFORMED,
    "pretraining": PRETRAINING,
    "written": WRITTEN,
}
TOPICS = {"sport": "球队比赛进球冠军", "food": "好吃餐厅美味火锅", "money": "股票基金银行利率"}


def write(folder: Path, recipes: Mapping[str, str] = RECIPES) -> dict[str, Path]:
    """The recipes by task, with their data, as files in `folder`."""
    draw = random.Random(0)

    def text(topic: str, longest: int = 14) -> str:
        return "".join(draw.choice(TOPICS[topic] + "的了是在我") for _ in range(draw.randint(3, longest)))

    def rows(name: str, found: list[dict[str, Any]]) -> None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found]
        (folder / name).write_text("".join(lines), encoding="utf-8")

    topics = list(TOPICS)
    rows("train.jsonl", [{"text": text(t), "label": t} for t in draw.choices(topics, k=75)])
    rows("test.jsonl", [{"text": text(t), "label": t} for t in draw.choices(topics, k=15)])
    pairs = [(draw.choice(topics), draw.choice(topics)) for _ in range(75)]
    rows("pairs.jsonl", [{"a": text(a), "b": text(b), "label": "same" if a == b else "other"} for a, b in pairs])
    rows("numbers.jsonl", [{"a": text(a), "b": text(b), "score": round(draw.random() * 5, 1)} for a, b in pairs])
    rows("sets.jsonl", [{"text": text(a) + text(b), "label": sorted({a, b} - {"money"})} for a, b in pairs])
    texts = [text(topic) for topic, _ in pairs]
    rows("written.jsonl", [{"source": one, "target": one[::-1]} for one in texts])
    (folder / "more.txt").write_text("".join(text(t) + "\n" for t in draw.choices(topics, k=30)), encoding="utf-8")
    sentences = [text(draw.choice(topics)) + "。" for _ in range(320)]
    documents = ["".join(sentences[start : start + 4]) + "\n\n" for start in range(0, len(sentences), 4)]
    (folder / "documents.txt").write_text("".join(documents), encoding="utf-8")
    tagged, informed = [], []
    for _ in range(75):
        for word in draw.choices(["北京", "大连", *"的了是在我"], k=draw.randint(3, 14)):
            tags = ["B-LOC", "E-LOC"] if len(word) > 1 else ["O"]
            tagged += [f"{c} {t}\n" for c, t in zip(word, tags, strict=True)]
            beside = "S-OF" if word == "的" else "S-AT" if word == "在" else "O"
            informed += [f"{c} {t} {beside}\n" for c, t in zip(word, tags, strict=True)]
        tagged.append("\n")
        informed.append("\n")
    (folder / "train.bmes").write_text("".join(tagged), encoding="utf-8")
    (folder / "informed.bmes").write_text("".join(informed), encoding="utf-8")
    paths = {}
    for task, recipe in recipes.items():
        paths[task] = folder / f"{task}.yaml"
        name, _, rest = recipe.partition("\n")
        paths[task].write_text((f"{name}\n" + COMMON + rest).format(folder=folder), encoding="utf-8")
    return paths
