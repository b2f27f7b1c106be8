"""Answers new text as dtrain's Predictor does; needs onnxruntime, numpy and tokenizers, and this folder.

python predict.py < texts.txt   a text per line (for pairs: two, separated by a tab) -> a JSON object per line
from predict import Model       Model()(["a text", "another"]), for pairs Model()(texts, texts_b);
                                    `threads`: CPU threads of a batch; `rows`: rows of a batch
"""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def open_graph(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


class Model:
    def __init__(self, folder=Path(__file__).parent, threads=1, rows=64):
        folder, self.rows = Path(folder), rows
        files = ("settings.json", "normalization.json")
        self.settings, self.table = (json.loads((folder / name).read_text("utf-8")) for name in files)
        self.before, self.after = (str.maketrans(self.table[name]) for name in ("before", "after"))
        self.words = re.compile(self.table["pattern"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = True  # "[SEP]" in a text is ordinary text
        self.graphs = [open_graph(folder / name, threads) for name in self.settings["graphs"]]

    def normalize(self, text):
        text = self.words.sub(lambda found: self.table["words"][found[0]], text.translate(self.before))
        text = text.translate(self.after)
        text = re.sub(r"\s+", " ", text).strip() if self.table["whitespace"] else text
        return text.lower() if self.table["lower"] else text

    def encode(self, texts, texts_b):
        """Token ids and token types of each row."""
        columns = [[self.normalize(text) for text in column] for column in (texts, texts_b) if column is not None]
        batch = list(zip(*columns, strict=True)) if len(columns) > 1 else columns[0]
        blank, mask, unknown = (self.settings[name] for name in ("blank_id", "mask_id", "unknown_id"))
        for row in self.tokenizer.encode_batch(batch):
            yield [mask if number == blank else number for number in row.ids] or [unknown], row.type_ids or [0]

    def logits(self, rows):
        """Logits of a batch of (ids, types). With several graphs, a row exits at the first that is confident enough."""
        ids, types, mask = (np.zeros((len(rows), max(len(row[0]) for row in rows)), np.int64) for _ in range(3))
        ids += self.settings["pad_id"]
        for place, (row, kinds) in enumerate(rows):
            ids[place, : len(row)], types[place, : len(row)], mask[place, : len(row)] = row, kinds, 1
        more = {"token_type_ids": types} if self.settings["types"] else {}
        feeds = {"input_ids": ids, "attention_mask": mask} | more
        left, found = np.arange(len(rows)), {}
        for graph in self.graphs:
            logits, *states = graph(feeds)
            found |= zip(left, logits, strict=True)
            stays = shares(logits).max(1) < np.float32(self.settings.get("confidence", 0))
            if not states or not stays.any():
                break
            left, mask = left[stays], mask[stays]
            feeds = {"states": states[0][stays], "attention_mask": mask}
        return [found[row] for row in range(len(rows))]

    def __call__(self, texts, texts_b=None):
        if (texts_b is None) != (self.settings["texts"] == 1):
            raise ValueError(f"this model reads {self.settings['texts']} text(s) a row (on stdin, with a tab between)")
        rows, logits = list(self.encode(texts, texts_b)), {}
        order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))  # similar lengths: little padding
        for batch in (order[start : start + self.rows] for start in range(0, len(order), self.rows)):
            logits |= zip(batch, self.logits([rows[row] for row in batch]), strict=True)
        return [self.answer(logits[row].astype(np.float64)) for row in range(len(rows))]

    def answer(self, logits):
        """The answer that the logits [C] of one row give, by the kind of task."""
        names, kind = self.settings["labels"], self.settings["answer"]
        if kind == "number":
            return {"number": float(f"{logits[0] * self.settings['scale'] + self.settings['shift']:.7g}")}
        values = shares(logits[None])[0] if kind == "label" else 1 / (1 + np.exp(-logits))
        scores = {name: round(float(value), 6) for name, value in zip(names, values, strict=True)}
        if kind == "labels":
            return {"labels": [names[n] for n in np.flatnonzero(values > self.settings["threshold"])], "scores": scores}
        best = names[int(np.argmax(values))]
        return {"label": best, "score": scores[best], "scores": scores}


def shares(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


if __name__ == "__main__":
    with open(0, encoding="utf-8") as stdin:
        model, lines = Model(), [line.rstrip("\n") for line in stdin]
    columns = zip(*(line.split("\t", 1) for line in lines), strict=True) if model.settings["texts"] == 2 else [lines]
    for answer in model(*map(list, columns)) if lines else []:
        print(json.dumps(answer, ensure_ascii=False))
