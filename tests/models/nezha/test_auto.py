"""Registration in the middle of transformers' own imports: with some of its modules half imported, or some already."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "program",
    [
        "import dtrain; from transformers import BertModel",
        "from transformers import PreTrainedModel; import dtrain",
    ],
)
def test_in_the_middle_of_imports(program: str) -> None:
    check = f"""
{program}
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModel
config = AutoConfig.for_model("nezha", hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
assert type(AutoModelForMaskedLM.from_config(config)).__name__ == "NezhaForMaskedLM"
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
assert type(config) in TOKENIZER_MAPPING
"""
    run = subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", check], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
