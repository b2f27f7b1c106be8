"""A tiny model of every architecture, and of every task of a model of several, as the folders that training leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dtrain import Predictor
from dtrain.data.preprocessing import write_preprocessing, write_preprocessing_of_tasks
from dtrain.data.vocabularies import character_tokenizer, student_tokenizer, trained_tokenizer
from dtrain.data.written import learnt_tokenizer, save_tokenizer
from dtrain.export.folder import Wish, export_model
from dtrain.models import build, describe, save_model
from dtrain.recipe.data import Data, Vocabulary
from dtrain.recipe.models import Architecture, EncoderSpec, ModelSpec, of_type

SAMPLE = [
    "电脑前面的皇后说：今天的股票涨了三点，真的吗？球队在北京赢了比赛。",
    "里面有abc和xyz，价格是£30！天气很好；我们去看电影，演员和导演都来了。",
    "the weather is fine and the film is long",
]
LONG = "球队在北京赢了比赛。电脑里面有股票，" * 9  # 162 characters: cut, or for a tagger read in pieces
TEXTS = [
    "電腦裡面的皇后說：股票漲了",
    "ＡＢＣ，ｘｙｚ！３０",
    "球队😀在👨‍👩‍👧北京[SEP]赢\u200b了▒比赛",
    "",
    "  \t ",
    LONG,
    "The Film is long",
    "a",
]
LABELS = ["sport", "money", "film"]
PAIRS = ("pairs", "regression")  # kinds of task whose rows are two texts here
TAGS = ["O", *(f"{place}-{kind}" for kind in ("PER", "LOC") for place in "BIES")]
ENCODER = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "vocabulary_size": 300}
BERT, NEZHA = {"type": "bert", **ENCODER}, {"type": "nezha", **ENCODER}

# Of the model of several tasks: the kind of each, and what a head's entry in config.json says beside its labels.
HEADS: dict[str, tuple[str, dict]] = {
    "topic": ("classification", {}),
    "same": ("pairs", {}),
    "like": ("regression", {"standardized": {"mean": 2.5, "deviation": 1.5}}),
    "about": ("multi_label", {"threshold": 0.3}),
    "names": ("tagging", {}),
}
# By name: the task, and the section `model`. NEZHA's positions end at 64, and its texts do not.
MODELS: dict[str, tuple[str, dict]] = {
    "bert": ("classification", BERT),
    "bert_pairs": ("pairs", BERT),
    "nezha": ("classification", NEZHA),
    "bert_cnn": ("classification", {"type": "bert_cnn", "encoder": BERT, "filters": 6, "widths": [2, 3]}),
    "multi_exit": (
        "classification",
        {"type": "multi_exit", "encoder": {**BERT, "layers": 2}, "exits": [1], "confidence": 0.6},
    ),
    "bilstm": ("classification", {"type": "bilstm", "embedding": 12, "hidden": 8, "layers": 2}),
    "textcnn": ("classification", {"type": "textcnn", "embedding": 12, "filters": 6}),
    "text_rcnn": ("classification", {"type": "text_rcnn", "embedding": 12, "hidden": 8, "features": 6}),
    "fasttext": ("pairs", {"type": "fasttext", "embedding": 12, "buckets": 64}),
    "siamese": ("pairs", {"type": "siamese", "embedding": 12, "hidden": 8}),
    "multi_label": ("multi_label", {"type": "textcnn", "embedding": 12, "filters": 6}),
    "regression": ("regression", {"type": "fasttext", "embedding": 12, "buckets": 64}),
    "tagger": ("tagging", {"type": "tagger", "embedding": 12, "lstm": 8, "constrain": True}),
    "softmax_tagger": ("tagging", {"type": "idcnn", "embedding": 12, "filters": 8, "crf": False}),
    "marian": ("seq2seq", {"type": "marian", **ENCODER, "layers": 2, "decoder_layers": 1}),
    "marian_two": ("seq2seq", {"type": "marian", **ENCODER, "vocabularies": "two"}),
    "bart": ("seq2seq", {"type": "bart", **ENCODER, "decoder_layers": 2}),  # with RULES
    "nezha_tagger": ("tagging", {"type": "tagger", "encoder": {**NEZHA, "layers": 2}, "fusion": "dynamic", "lstm": 8}),
}
# What a generation_config.json says beside its start and end: what a model never writes, and what it begins with.
RULES = {"forced_bos_token_id": 7, "min_length": 9, "no_repeat_ngram_size": 2, "bad_words_ids": [[0], [9]]}
NAMES = [*MODELS, *(f"several-{task}" for task in HEADS)]


@dataclass(frozen=True)
class Model:
    """A model's folder, and what `Predictor` is asked; of a model of several tasks, `one` is the task that answers."""

    folder: Path
    task: str
    texts: tuple[list[str], ...]
    one: str | None = None

    def predictor(self) -> Predictor:
        return Predictor(self.folder, task=self.one)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    root = tmp_path_factory.mktemp("models")
    return {name: _made(root / name, *MODELS[name]) for name in MODELS} | _of_several(root / "several")


@pytest.fixture(scope="session")
def exported(model_folders: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the export of each model under its name."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    root = tmp_path_factory.mktemp("exported")
    for name, model in model_folders.items():
        export_model(Wish(model.folder, name, "onnx", task=model.one), root / name)
    return root


def _made(folder: Path, task: str, section: dict) -> Model:
    spec: ModelSpec = of_type(section, Architecture).model_validate(section)
    tokenizer_path = folder.with_name(f"{folder.name}-tokenizer")
    batches, lower = [[text.lower() for text in SAMPLE]], True
    if not isinstance(spec.transformer, EncoderSpec):
        tokenizer = student_tokenizer(Vocabulary(min_count=1), batches)
    elif task == "seq2seq":
        two = spec.transformer.two_vocabularies
        tokenizer = learnt_tokenizer(300, batches, [[text[::-1] for text in batches[0]]], lower, two=two)
    elif task == "tagging":
        tokenizer = character_tokenizer(spec.transformer, 1, batches, lower)
    else:
        tokenizer = trained_tokenizer(spec.transformer, batches, lower)
    save_tokenizer(tokenizer, tokenizer_path)
    pairs = task in PAIRS
    data = Data.model_validate(_section(task))
    torch.manual_seed(3)
    model = build(
        spec,
        vocabulary=len(tokenizer),
        labels=_labels(task),
        pad_id=tokenizer.pad_token_id,
        tokenizer_path=tokenizer_path,
        max_length=data.max_length,
    )
    if task == "seq2seq":
        _sharpen_writer(model)
        model.generation_config.update(**(RULES if folder.name == "bart" else {}))
    else:
        _sharpen(model, 4.0 if spec.transformer is not None else 2.5)
    if task == "multi_label":
        describe(model, {"threshold": 0.3})
    if task == "regression":
        describe(model, {"standardized": {"mean": 2.5, "deviation": 1.5}})
    save_model(model, folder, tokenizer_path, "a card")
    write_preprocessing(folder, data, {})
    return Model(folder, task, (TEXTS, TEXTS[::-1]) if pairs else (TEXTS,))


def _of_several(folder: Path) -> dict[str, Model]:
    """One model with a head for every kind of task, by the names of its exports."""
    spec: ModelSpec = of_type({"type": "multi_task", "encoder": BERT}, Architecture).model_validate(
        {"type": "multi_task", "encoder": BERT}
    )
    assert spec.transformer is not None
    tokenizer_path = folder.with_name("several-tokenizer")
    tokenizer = trained_tokenizer(spec.transformer, [[text.lower() for text in SAMPLE]], True)
    tokenizer.save_pretrained(tokenizer_path)
    torch.manual_seed(3)
    model = build(
        spec,
        vocabulary=len(tokenizer),
        labels=[],
        pad_id=tokenizer.pad_token_id,
        max_length=100,
        heads={
            name: {"tags": kind == "tagging", "labels": _labels(kind), "config": config}
            for name, (kind, config) in HEADS.items()
        },
    )
    _sharpen(model, 4.0)
    save_model(model, folder, tokenizer_path, "a card")
    sections = {name: Data.model_validate(_section(kind)) for name, (kind, _) in HEADS.items()}
    write_preprocessing_of_tasks(folder, {name: (section, {}) for name, section in sections.items()})
    return {
        f"several-{name}": Model(folder, kind, (TEXTS, TEXTS[::-1]) if kind in PAIRS else (TEXTS,), name)
        for name, (kind, _) in HEADS.items()
    }


def _labels(task: str) -> list[str]:
    return TAGS if task == "tagging" else ["number"] if task == "regression" else LABELS


def _section(task: str) -> dict:
    columns = {"text_b": "b"} if task in PAIRS else {}
    return {"task": task, "train": "train.jsonl", "columns": columns, "max_length": 100}


def _sharpen(model: torch.nn.Module, by: float) -> None:
    """Far from indifferent: a new model's answers hardly depend on the text."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.mul_(by)


def _sharpen_writer(model: torch.nn.Module) -> None:
    """Of a decoder what it reads counts, and where it stands: else it writes its first token again and again."""
    more = {"encoder_attn.out_proj": 30.0, "fc2": 600.0, "embed_positions": 40.0}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and parameter.requires_grad:  # Marian's sinusoids are none
                parameter.mul_(next((by for part, by in more.items() if part in name), 4.0))
