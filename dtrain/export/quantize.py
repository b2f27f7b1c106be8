"""int8 by onnxruntime's dynamic quantisation: a graph's weights are rounded, activations are scaled at run time."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Operators whose weights are rounded: matrix products, LSTMs and tables of vectors. Convolutions stay float.
OPERATORS = ("MatMul", "Gemm", "LSTM", "Gather", "Attention")


def quantize(path: Path, operators: Sequence[str] = OPERATORS) -> None:
    """Replace the float weights of a graph's file by int8 weights. Those of a matrix have one scale for each column.

    Args:
        operators: names of the ONNX operators whose weights are rounded.
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
