"""Measured speed: ratios of models whose cost is known, by a clock that only they advance."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dtrain.data import EncodedSplit
from dtrain.report import latency
from dtrain.report.latency import machine, measure


class Clock:
    now = 0.0


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Seconds that a busy machine cannot lengthen."""
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: Clock.now))


class Sleeper(nn.Module):
    """A model whose pass takes so many seconds."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.shapes = seconds, []

    def forward(self, input_ids, attention_mask):
        self.shapes.append(input_ids.shape)
        assert not self.training and torch.is_inference_mode_enabled()
        Clock.now += self.seconds
        return SimpleNamespace(logits=torch.zeros(len(input_ids), 2))


def part(rows):
    return EncodedSplit(
        ids=np.arange(rows),
        labels=np.zeros(rows, dtype=np.int64),
        tokens=np.ones(2 * rows, dtype=np.int32),
        types=None,
        offsets=np.arange(rows + 1) * 2,
        pad_id=0,
        load_rows=lambda: None,
    )


def test_ratio_and_rows():
    models = {"fast": Sleeper(0.004), "slow": Sleeper(0.02)}
    found = measure(models, dict.fromkeys(models, part(20)), torch.device("cpu"), batch=8)
    assert found["rows"] == 20  # 8 + 8 + 4
    assert [shape[0] for shape in models["slow"].shapes[-3:]] == [8, 8, 4]
    speed = found["rows_per_second"]
    assert speed["slow"] == pytest.approx(20 / 0.06)
    assert speed["fast"] / speed["slow"] == pytest.approx(5)


class SleepingTagger(Sleeper):
    def forward(self, input_ids, attention_mask):
        answer = super().forward(input_ids, attention_mask)
        return SimpleNamespace(logits=answer.logits, mask=attention_mask.bool())

    def decode(self, emissions, mask):
        assert len(emissions) == len(mask)
        Clock.now += 3 * self.seconds


def test_a_taggers_search_for_tags_is_timed():
    models = {"classifier": Sleeper(0.01), "tagger": SleepingTagger(0.01)}
    speed = measure(models, dict.fromkeys(models, part(20)), torch.device("cpu"), batch=10)["rows_per_second"]
    assert speed["classifier"] / speed["tagger"] == pytest.approx(4)


def test_slow_models_are_timed_on_fewer_rows(monkeypatch):
    """For about five times PASS_SECONDS, whatever the slowest model's pace; 1 in 100 of a few calls is not told."""
    monkeypatch.setattr("dtrain.report.latency.PASS_SECONDS", 0.05)
    models = {"slow": Sleeper(0.02)}
    found = measure(models, {"slow": part(100)}, torch.device("cpu"), batch=1)
    assert (found["rows"], found["repeats"]) == (2, 5)
    assert found["milliseconds"]["slow"].keys() == {"p50"}


def test_a_slow_batch_is_timed_less_often(monkeypatch):
    monkeypatch.setattr("dtrain.report.latency.PASS_SECONDS", 0.01)
    slow, fast = Sleeper(0.1), Sleeper(0.005)
    found = measure({"slow": slow, "fast": fast}, dict.fromkeys(("slow", "fast"), part(40)), torch.device("cpu"), 8)
    assert (found["rows"], found["repeats"]) == (8, 2)
    assert len(slow.shapes) == len(fast.shapes) == 3  # one more to warm up
    assert found["rows_per_second"]["slow"] == pytest.approx(80)


def test_one_in_a_hundred_is_told_of_a_hundred_calls():
    found = measure({"fast": Sleeper(0.001)}, {"fast": part(40)}, torch.device("cpu"), batch=1)
    assert found["rows"] * found["repeats"] == 200
    assert found["milliseconds"]["fast"] == pytest.approx({"p50": 1, "p99": 1})


def test_the_row_that_is_left_for_a_last_batch_is_no_measurement_of_one_row():
    found = measure({"fast": Sleeper(0.001)}, {"fast": part(9)}, torch.device("cpu"), batch=4)
    assert found["rows"] == 9 and found["milliseconds"] == {}


def test_machine_is_named():
    found = machine()
    assert found["cpu"] and found["cores"] >= 1 and found["torch"] == torch.__version__
