"""Model folders whose file of preprocessing is not what dtrain writes, and devices that do not exist."""

from pathlib import Path

import pytest
import torch

from dtrain.data.preprocessing import FILE
from dtrain.errors import InputError
from dtrain.predict.folder import read_folder
from dtrain.predict.predictor import Predictor


@pytest.mark.parametrize(("content", "task"), [("[]", None), ("3", None), ('{"tasks": {"a": []}}', "a"), ("{}", None)])
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str, task: str | None) -> None:
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"{FILE}: does not say how texts are prepared"):
        read_folder(tmp_path, task)


def test_a_gpu_that_is_not_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"device: 'cuda:2': torch sees 2 GPU\(s\) here, counted from 0"):
        Predictor(tmp_path, device="cuda:2")
    with pytest.raises(InputError, match="is missing"):  # the device is good, and the folder is empty
        Predictor(tmp_path, device="cuda:1")
