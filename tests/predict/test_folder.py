"""Model folders whose file of preprocessing is not what dtrain writes."""

from pathlib import Path

import pytest

from dtrain.data.preprocessing import FILE
from dtrain.errors import InputError
from dtrain.predict.folder import read_folder


@pytest.mark.parametrize(("content", "task"), [("[]", None), ("3", None), ('{"tasks": {"a": []}}', "a"), ("{}", None)])
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str, task: str | None) -> None:
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"{FILE}: does not say how texts are prepared"):
        read_folder(tmp_path, task)
