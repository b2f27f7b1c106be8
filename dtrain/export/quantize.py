"""int8: onnxruntime's dynamic quantisation of a graph's weights; activations are scaled as they come."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Of float weights: matrix products, LSTMs and tables of vectors. Convolutions stay float.
OPERATORS = ("MatMul", "Gemm", "LSTM", "Gather", "Attention")


def quantize(path: Path, operators: Sequence[str] = OPERATORS) -> None:
    """Put int8 weights in the place of a graph's float ones.

    Weights of a matrix have a scale a column.

    Args:
        operators: names of ONNX whose weights are rounded.
    """
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    aside = path.with_name(f"float-{path.name}")
    path.rename(aside)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a step that torch's exporter has done already
    try:
        quantization.quantize_dynamic(
            aside,
            path,
            op_types_to_quantize=list(operators),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"DefaultTensorType": 1},  # float32, where shapes could not be inferred
        )
    finally:
        root.setLevel(level)
    aside.unlink()
