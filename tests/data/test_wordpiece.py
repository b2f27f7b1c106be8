"""WordPiece merges: by hand, against the `tokenizers` trainer where it has no ties, and the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from dtrain.data.wordpiece import train_wordpiece


def test_by_hand() -> None:
    # ##o-##w and l-##o are both seen 7 times, the alphabet puts the first in front; then l-##ow, then ##e-##r.
    words = {"low": 5, "lower": 2, "中": 3}
    characters = ["##o", "##w", "l", "o", "w", "中", "##e", "##r", "e"]
    assert train_wordpiece(words, size=12) == [*characters, "##ow", "low", "##er"]
    # A word with a character that is too rare is left alone.
    assert train_wordpiece(words, size=100, min_count=3) == [*characters[:6], "##ow", "low"]


def test_against_the_trainer_of_tokenizers() -> None:
    # Counts are powers of two over words that share ends or beginnings: no two pairs are seen equally often.
    words = ["a", "ab", "abc", "abcd", "abcde", "qst", "rst", "pst", "vrst", "xrst", "中"]
    counts = {word: 2 ** (n + 2) for n, word in enumerate(words)}
    reference = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    reference.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(vocab_size=200, min_frequency=2, show_progress=False)
    reference.train_from_iterator([" ".join([word] * count) for word, count in counts.items()], trainer)
    assert set(train_wordpiece(counts, size=200)) == set(reference.get_vocab())


def test_characters_leave_room_for_pieces() -> None:
    words = {chr(0x4E00 + n): 100 - n for n in range(60)} | {"ab": 200}
    pieces = train_wordpiece(words, size=40)
    assert pieces[:4] == ["##b", "a", "b", "一"]
    assert len(pieces) == 31  # three quarters for characters, and the one merge there is
    assert pieces[-1] == "ab"


def test_the_same_in_every_process() -> None:
    program = (
        "from dtrain.data.wordpiece import train_wordpiece\n"
        "words = {f'{a}{b}{c}x': 3 for a in 'abcdef' for b in 'ghijk' for c in 'lmno'}\n"
        "print(train_wordpiece(words, 80))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
