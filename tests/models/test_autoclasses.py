"""`import dtrain` makes the Auto classes know NEZHA, before or after transformers, and imports neither by itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = "from transformers import AutoConfig, AutoModel; print(type(AutoModel.from_config(AutoConfig.for_model('nezha', hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=9))).__name__)"


@pytest.mark.parametrize(
    "first",
    [
        "import dtrain",
        "import transformers, dtrain",
        "from transformers import AutoModel; import dtrain",
        "import dtrain; from transformers import AutoTokenizer",
    ],
)
def test_order_of_imports(first: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"{first}; {CHECK}"], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "NezhaModel", done.stderr


def test_import_is_light() -> None:
    check = "import dtrain, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
