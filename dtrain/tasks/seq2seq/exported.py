"""Generates a text for each text as dtrain's Predictor does; needs onnxruntime, numpy and tokenizers, and this folder.

python predict.py < texts.txt   one text per line -> one JSON object per line, with the generated text as `target`
from predict import Model       Model()(["a text", "another"]); `threads`: CPU threads of a batch; `rows`: its rows
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
        self.tokenizer, self.target = (Tokenizer.from_file(str(folder / self.settings[n])) for n in ("reads", "writes"))
        self.tokenizer.encode_special_tokens = True  # "[SEP]" in a text is ordinary text
        self.read, self.step = (open_graph(folder / name, threads) for name in self.settings["graphs"])

    def normalize(self, text):
        text = self.words.sub(lambda found: self.table["words"][found[0]], text.translate(self.before))
        text = text.translate(self.after)
        text = re.sub(r"\s+", " ", text).strip() if self.table["whitespace"] else text
        return text.lower() if self.table["lower"] else text

    def encode(self, texts):
        """Token ids of each text."""
        blank, mask, unknown = (self.settings[name] for name in ("blank_id", "mask_id", "unknown_id"))
        for row in self.tokenizer.encode_batch([self.normalize(text) for text in texts]):
            yield [mask if number == blank else number for number in row.ids] or [unknown]

    def __call__(self, texts):
        rows, found = list(self.encode(texts)), {}
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # similar lengths: little padding
        for batch in (order[start : start + self.rows] for start in range(0, len(order), self.rows)):
            ids = np.full((len(batch), len(rows[batch[-1]])), self.settings["pad_id"])
            mask = np.zeros_like(ids)
            for place, row in enumerate(batch):
                ids[place, : len(rows[row])], mask[place, : len(rows[row])] = rows[row], 1
            found |= zip(batch, self.write(ids, mask), strict=True)
        return [{"target": self.text(found[row])} for row in range(len(rows))]

    def write(self, ids, mask):
        """Token ids of each row's target, with the end token, by greedy decoding; `ids` and `mask` are int64 [B, L]."""
        found, left = [None] * len(ids), np.arange(len(ids))
        (source,) = self.read({"input_ids": ids, "attention_mask": mask})
        tokens = np.full((len(ids), 1), self.settings["start"])
        past = np.zeros((len(ids), 0, self.settings["width"]), np.float32)
        while len(left):
            feeds = {"tokens": tokens, "past": past, "source": source, "attention_mask": mask}
            logits, more = self.step(feeds)
            tokens = np.hstack([tokens, self.choose(logits, tokens)[:, None]])
            past = np.hstack([past, more])
            ended = np.isin(tokens[:, -1], self.settings["ends"]) | (tokens.shape[1] > self.settings["max_length"])
            for row in np.flatnonzero(ended):
                found[left[row]] = tokens[row, 1:]
            if ended.any():  # finished rows leave the batch
                left, tokens, past, source, mask = (each[~ended] for each in (left, tokens, past, source, mask))
        return found

    def choose(self, logits, tokens):
        """The most likely next token of each row that the rules of generation allow, after `tokens` [B, T]."""
        rules, place, n = self.settings, tokens.shape[1], self.settings["unrepeated"]
        forced = rules["last"] if place == rules["max_length"] else None
        forced = rules["first"] if place == 1 and forced is None else forced
        if forced is not None:
            return np.full(len(logits), forced)
        logits[:, rules["never"] + (rules["ends"] if place < rules["least"] else [])] = -np.inf
        for row, own in zip(logits, tokens.tolist(), strict=True) if n else ():
            row[
                [own[at + n - 1] for at in range(place - n + 1) if own[at : at + n - 1] == own[place - n + 1 :]]
            ] = -np.inf
        return logits.argmax(1)

    def text(self, tokens):
        text = self.target.decode(tokens.tolist(), skip_special_tokens=True)
        for piece, instead in self.settings["joined"]:
            text = text.replace(piece, instead)
        return text.strip()


if __name__ == "__main__":
    with open(0, encoding="utf-8") as stdin:
        for answer in Model()([line.rstrip("\n") for line in stdin]):
            print(json.dumps(answer, ensure_ascii=False))
