"""`import dtrain.models.nezha` makes the Auto classes know NEZHA, before or after transformers; `import dtrain` is light."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

config = AutoConfig.for_model("nezha", hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
assert type(AutoModel.from_config(config)).__name__ == "NezhaModel"
assert type(AutoModelForMaskedLM.from_config(config)).__name__ == "NezhaForMaskedLM"
assert type(config) in TOKENIZER_MAPPING
"""


@pytest.mark.parametrize(
    "first",
    [
        "import dtrain.models.nezha",
        "from transformers import AutoModel; import dtrain.models.nezha",
        "import dtrain.models.nezha; from transformers import AutoTokenizer",
        "from transformers import PreTrainedModel; import dtrain; dtrain.load; import dtrain.models.transformer",
    ],
)
def test_order_of_imports(first: str) -> None:
    code = [sys.executable, "-W", "error::FutureWarning", "-c", f"{first}\n{CHECK}"]
    done = subprocess.run(code, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_import_is_light() -> None:
    check = (
        "import sys; before = list(sys.meta_path); import dtrain; assert sys.meta_path == before;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
