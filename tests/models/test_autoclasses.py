"""`import dtrain.models.nezha` makes the Auto classes know NEZHA, before or after transformers; `import dtrain` is light."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.processes import run_each

CHECK = """
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

config = AutoConfig.for_model("nezha", hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
assert type(AutoModel.from_config(config)).__name__ == "NezhaModel"
assert type(AutoModelForMaskedLM.from_config(config)).__name__ == "NezhaForMaskedLM"
assert type(config) in TOKENIZER_MAPPING
"""


ORDERS = (
    "import dtrain.models.nezha",
    "from transformers import AutoModel; import dtrain.models.nezha",
    "import dtrain.models.nezha; from transformers import AutoTokenizer",
    "from transformers import PreTrainedModel; import dtrain; dtrain.load; import dtrain.models.transformer",
)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Of processes that have imported what both import, and neither of the two."""
    first = "import sys, torch, sklearn.metrics; assert not {'dtrain', 'transformers'} & set(sys.modules)"
    folder = tmp_path_factory.mktemp("orders")
    done = run_each([f"{order}\n{CHECK}" for order in ORDERS], first, folder, PYTHONWARNINGS="error::FutureWarning")
    return dict(zip(ORDERS, done, strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_imports(ends: dict[str, subprocess.CompletedProcess[str]], order: str) -> None:
    assert ends[order].returncode == 0, ends[order].stderr[-2000:]


def test_import_is_light() -> None:
    check = (
        "import sys; before = list(sys.meta_path); import dtrain; assert sys.meta_path == before;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
