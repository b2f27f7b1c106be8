"""Which precision `auto` is on which device."""

from __future__ import annotations

import pytest
import torch

from dtrain.engines.precision import resolve_precision


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_gpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    """torch counts GPUs that emulate bf16 (V100, T4) unless it is told not to."""

    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert resolve_precision("auto", torch.device("cuda"), "teachers.t.precision") == expected
    assert resolve_precision("auto", torch.device("cpu"), "teachers.t.precision") == "fp32"
    # An explicit choice is respected.
    assert resolve_precision("bf16", torch.device("cuda"), "teachers.t.precision") == "bf16"
