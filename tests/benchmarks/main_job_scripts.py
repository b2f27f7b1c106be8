"""The main job as scripts that need no dtrain: plain, with transformers' Trainer, and its last step with TextBrewer.

`main_job.py` runs each in a process of its own and says what they are. Libraries are imported by the way that needs them, as
its start is part of its seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

LENGTH, WIDTH = 64, 512
RATES = {"teacher": 5e-5, "student": 1e-3}
WARMUP = 100  # steps


class Laps:
    """Seconds by part; a part may come several times."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] += now - self._last  # type: ignore[assignment]
        self._last = now


class Scripts:
    """What plain scripts have in common: the rows, the vocabulary of characters, students."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.train, self.valid = read(asked.folder / "train.json"), read(asked.folder / "valid.json")
        names = sorted({row["label"] for row in [*self.train, *self.valid]})
        self.labels = {name: number for number, name in enumerate(names)}
        seen = Counter("".join(row["sentence"] for row in self.train))
        self.ids = {character: 2 + n for n, character in enumerate(c for c, count in seen.items() if count > 2)}

    def teacher(self) -> Any:
        import torch
        from transformers import AutoTokenizer, BertForSequenceClassification

        torch.manual_seed(1)
        self.tokenizer = AutoTokenizer.from_pretrained(self.asked.encoder)
        return BertForSequenceClassification.from_pretrained(self.asked.encoder, num_labels=len(self.labels))

    def for_teacher(self, rows: list[dict[str, Any]]) -> tuple[Any, Any]:
        import torch

        texts = [row["sentence"] for row in rows]
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        return inputs, torch.tensor([self.labels[row["label"]] for row in rows])

    def for_student(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        texts = [torch.tensor([self.ids.get(c, 1) for c in row["sentence"][:LENGTH]] or [1]) for row in rows]
        found = {
            "characters": pad_sequence(texts, batch_first=True),
            "lengths": torch.tensor([len(text) for text in texts]),
            "target": torch.tensor([self.labels[row["label"]] for row in rows]),
        }
        if "logits" in rows[0]:
            found["logits"] = torch.tensor([row["logits"] for row in rows])
        return found

    def student(self) -> Any:
        import torch
        from torch import nn
        from torch.nn.utils.rnn import pack_padded_sequence

        class BiLSTM(nn.Module):
            def __init__(self, vocabulary: int, classes: int) -> None:
                super().__init__()
                self.embedding = nn.Embedding(vocabulary, WIDTH, padding_idx=0)
                self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
                self.classifier = nn.Linear(2 * WIDTH, classes)

            def forward(self, characters: Any, lengths: Any) -> Any:
                packed = pack_padded_sequence(
                    self.embedding(characters), lengths, batch_first=True, enforce_sorted=False
                )
                _, (last, _) = self.lstm(packed)
                return self.classifier(torch.cat([last[0], last[1]], dim=1))

        torch.manual_seed(1)
        return BiLSTM(2 + len(self.ids), len(self.labels))

    def batches(self, rows: Any, collate: Callable[[Any], Any], shuffle: bool = False) -> Any:
        from torch.utils.data import DataLoader

        return DataLoader(rows, self.asked.batch, shuffle=shuffle, collate_fn=collate)

    def optimizer(self, model: Any, who: str) -> tuple[Any, Any]:
        import torch
        from torch.optim.lr_scheduler import LinearLR

        optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[who])
        return optimizer, LinearLR(optimizer, 0.1, 1.0, WARMUP)

    def train_student(self, rows: Any) -> float:
        """Its accuracy; distilled where the rows have logits."""
        from torch import nn

        model = self.student()
        optimizer, schedule = self.optimizer(model, "student")
        score = 0.0
        for _ in range(self.asked.epochs):
            model.train()
            for batch in self.batches(rows, self.for_student, shuffle=True):
                answer = model(batch["characters"], batch["lengths"])
                if "logits" in batch:
                    loss = nn.functional.mse_loss(answer, batch["logits"])
                else:
                    loss = nn.functional.cross_entropy(answer, batch["target"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                loss.item()
            score = self.accuracy(
                model, self.for_student, lambda b: (model(b["characters"], b["lengths"]), b["target"])
            )
        return score

    def accuracy(self, model: Any, collate: Any, answer: Callable[[Any], tuple[Any, Any]]) -> float:
        import torch

        hits = 0
        model.eval()
        with torch.no_grad():
            for batch in self.batches(self.valid, collate):
                logits, target = answer(batch)
                hits += int((logits.argmax(-1) == target).sum())
        return hits / len(self.valid)

    def train_students(self, laps: Laps, store: str) -> dict[str, float]:
        from datasets import load_from_disk

        scores = {"scratch": self.train_student(self.train), "distilled": self.train_student(load_from_disk(store))}
        laps.lap("students")
        return scores


def plain(asked: argparse.Namespace) -> dict[str, Any]:
    laps = Laps()
    import torch

    scripts = Scripts(asked)
    laps.lap("prepare")
    bert = scripts.teacher()
    optimizer, schedule = scripts.optimizer(bert, "teacher")
    score = 0.0
    for _ in range(asked.teacher_epochs):
        bert.train()
        for inputs, target in scripts.batches(scripts.train, scripts.for_teacher, shuffle=True):
            loss = bert(**inputs, labels=target).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss.item()
        score = scripts.accuracy(bert, scripts.for_teacher, lambda b: (bert(**b[0]).logits, b[1]))
    laps.lap("finetune")
    stored: list[list[float]] = []
    with torch.no_grad():
        for inputs, _ in scripts.batches(scripts.train, scripts.for_teacher):
            stored.extend(bert(**inputs).logits.tolist())
    store(scripts, stored, asked.folder / "plain-store")
    laps.lap("precompute")
    scores = scripts.train_students(laps, str(asked.folder / "plain-store"))
    return {"seconds": laps.seconds, "scores": {"teacher": score, **scores}}


def store(scripts: Scripts, logits: list[list[float]], place: Path) -> None:
    from datasets import Dataset

    rows = [{**row, "logits": values} for row, values in zip(scripts.train, logits, strict=True)]
    Dataset.from_list(rows).save_to_disk(str(place))


def trainer(asked: argparse.Namespace) -> dict[str, Any]:
    laps = Laps()
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    scripts = Scripts(asked)
    bert = scripts.teacher()

    def encode(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = scripts.tokenizer([row["sentence"] for row in rows], truncation=True, max_length=LENGTH)
        labels = [scripts.labels[row["label"]] for row in rows]
        return [{"input_ids": ids, "labels": label} for ids, label in zip(found["input_ids"], labels, strict=True)]

    rows, valid = encode(scripts.train), encode(scripts.valid)
    laps.lap("prepare")
    settings = TrainingArguments(
        str(asked.folder / "trainer"),
        num_train_epochs=asked.teacher_epochs,
        per_device_train_batch_size=asked.batch,
        per_device_eval_batch_size=asked.batch,
        learning_rate=RATES["teacher"],
        warmup_steps=WARMUP,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to=[],
        use_cpu=True,
    )
    ours = Trainer(
        bert,
        settings,
        train_dataset=rows,  # type: ignore[arg-type]
        eval_dataset=valid,  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(scripts.tokenizer),
    )
    ours.train()
    laps.lap("finetune")
    logits = ours.predict(rows).predictions.tolist()  # type: ignore[arg-type, union-attr]
    store(scripts, logits, asked.folder / "trainer-store")
    laps.lap("precompute")
    found = ours.predict(valid)  # type: ignore[arg-type]
    score = float((found.predictions.argmax(-1) == found.label_ids).mean())  # type: ignore[union-attr]
    laps.lap("evaluate and report")
    scores = scripts.train_students(laps, str(asked.folder / "trainer-store"))
    return {"seconds": laps.seconds, "scores": {"teacher": score, **scores}}


def textbrewer(asked: argparse.Namespace) -> dict[str, Any]:
    laps = Laps()
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
    from transformers import BertForSequenceClassification

    scripts = Scripts(asked)
    bert = scripts.teacher()
    if asked.teacher:
        bert = BertForSequenceClassification.from_pretrained(asked.teacher)
    small = scripts.student()

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        own = scripts.for_student(rows)
        own = {name: own[name] for name in ("characters", "lengths")}
        return {"teacher": dict(scripts.for_teacher(rows)[0]), "student": own}

    laps.lap("prepare")
    where = {"device": "cpu", "output_dir": str(asked.folder / "textbrewer"), "log_dir": None}
    distiller = GeneralDistiller(
        TrainingConfig(**where, ckpt_frequency=1, gradient_accumulation_steps=1),
        DistillationConfig(temperature=2, kd_loss_weight=1),
        bert,
        small,
        lambda batch, output: {"logits": output.logits},
        lambda batch, output: {"logits": output},
    )
    optimizer, _ = scripts.optimizer(small, "student")
    with distiller:
        rows = scripts.batches(scripts.train, collate, shuffle=True)
        distiller.train(optimizer, rows, num_epochs=asked.epochs, callback=None)
    laps.lap("students")
    score = scripts.accuracy(small, scripts.for_student, lambda b: (small(b["characters"], b["lengths"]), b["target"]))
    return {"seconds": laps.seconds, "scores": {"distilled": score}}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
