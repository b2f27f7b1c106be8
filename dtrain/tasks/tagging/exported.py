"""Finds entities in new text as dtrain's Predictor does; needs onnxruntime, numpy and tokenizers, and this folder.

python predict.py < texts.txt   a text per line -> a JSON list per line; an entity has text, type, start, end, score
from predict import Model       Model()(["a text", "another"])
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

total = np.logaddexp.reduce  # log of a sum of exponentials


def open_graph(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


class Model:
    def __init__(self, folder=Path(__file__).parent, threads=1, rows=64):
        folder, self.rows = Path(folder), rows
        self.settings = json.loads((folder / "settings.json").read_text("utf-8"))
        self.table = str.maketrans(json.loads((folder / "normalization.json").read_text("utf-8"))["characters"])
        known = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        self.numbers = {token[2:]: n for token, n in known.items() if len(token) == 3 and token[:2] == "##"}
        self.numbers |= {token: n for token, n in known.items() if len(token) == 1}
        self.graph = open_graph(folder / self.settings["graphs"][0], threads)
        crf = self.settings["crf"]  # without a CRF, each tag is decided by itself
        self.start, self.end, self.moves = (np.array(crf[name], np.float32) for name in crf) if crf else (0, 0, 0)

    def pieces(self, text):  # cut after the last full stop that fits, else at the limit
        start, limit = 0, self.settings["max_length"] - 2
        while len(text) - start > limit:
            stops = (at for at in range(start + limit, start, -1) if text[at - 1] in self.settings["full_stops"])
            end = next(stops, start + limit)
            yield text[start:end]
            start = end
        yield text[start:]

    def __call__(self, texts):
        unknown, pad, first, last = (self.settings[name] for name in ("unknown_id", "pad_id", "before", "after"))
        pieces = [(row, piece) for row, text in enumerate(texts) for piece in self.pieces(text)]
        numbers = [[self.numbers.get(c, unknown) for c in p.translate(self.table) or "\0"] for _, p in pieces]
        found, order = {}, sorted(range(len(pieces)), key=lambda place: len(numbers[place]))
        for batch in (order[start : start + self.rows] for start in range(0, len(order), self.rows)):
            ids = [first + numbers[place] + last for place in batch]
            mask = (np.arange(len(ids[-1])) < np.array([[len(row)] for row in ids])).astype(np.int64)
            padded = np.array([row + [pad] * (len(ids[-1]) - len(row)) for row in ids], np.int64)
            (emissions,) = self.graph({"input_ids": padded, "attention_mask": mask})
            for place, row in zip(batch, emissions, strict=True):
                found[place] = self.decide(row[: len(numbers[place])])
        joined = [([], []) for _ in texts]
        for place, (row, _) in enumerate(pieces):
            for column, values in zip(joined[row], found[place], strict=True):
                column.extend(values)
        return [self.spans(text, *columns) for text, columns in zip(texts, joined, strict=True)]

    def decide(self, emissions):
        """The best tags (Viterbi), and log p(tag | text) of each (forward-backward), for emissions float32 [N, T]."""
        emissions = emissions - emissions.max(1, keepdims=True)
        if self.settings["crf"] is None:
            tags = emissions.argmax(1).tolist()
            return tags, (emissions - total(emissions, axis=1)[:, None])[range(len(tags)), tags]
        best, origins, ahead, back = self.start + emissions[0], [], [self.start + emissions[0]], [self.end]
        for scores in emissions[1:]:
            origins.append((best[:, None] + self.moves).argmax(0))
            best = (best[:, None] + self.moves).max(0) + scores
            ahead.append(total(ahead[-1][:, None] + self.moves, axis=0) + scores)
        tags = [int((best + self.end).argmax())]
        for origin in reversed(origins):
            tags.append(int(origin[tags[-1]]))
        for scores in emissions[:0:-1]:
            back.append(total(self.moves + scores + back[-1], axis=1))
        joint = np.array(ahead) + np.array(back[::-1])
        joint -= total(joint, axis=1)[:, None]
        return tags[::-1], joint[range(len(tags)), tags[::-1]]

    def spans(self, text, tags, sure):  # an entity is B I* E or S of one type
        found, start = [], None
        for at, tag in enumerate(tags[: len(text)]):  # an empty text was read as one unknown character
            kind, place = (tag - 1) >> 2, (tag - 1) & 3 if tag else -1
            goes_on = start is not None and place in (1, 2) and kind == (tags[at - 1] - 1) >> 2
            start = start if goes_on else at if place in (0, 3) else None
            if start is not None and place in (2, 3):
                entity = {"text": text[start : at + 1], "type": self.settings["types"][kind], "start": start}
                score = round(min(1.0, float(np.exp(min(sure[start : at + 1])))), 6)
                found.append({**entity, "end": at + 1, "score": score})
                start = None
        return found


if __name__ == "__main__":
    with open(0, encoding="utf-8") as stdin:
        for answer in Model()([line.rstrip("\n") for line in stdin]):
            print(json.dumps(answer, ensure_ascii=False))
