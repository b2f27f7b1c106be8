"""Make the reference file of LAMB: the parameters after 50 steps of timm 1.0.31's own Lamb.

    python tests/training/make_timm_golden.py [WHEEL]

WHEEL is timm's (downloaded by pip if left out). Nothing is installed: timm's optimizer needs only torch, and is
imported from the unpacked wheel. The file `golden/timm_lamb.safetensors` beside this script holds, in float32 and
float64 (DTYPE):

    start/P         parameter P before the first step, float32
    noise/P         [50, shape of P], float32: the gradient of step t is 0.3 · P + noise[t], taken in DTYPE
    CASE/DTYPE/P    the parameter after 50 steps under the options of CASES
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden" / "timm_lamb.safetensors"
VERSION = "1.0.31"
STEPS = 50
SHAPES = {"matrix": (7, 5), "cube": (3, 11, 2), "row": (1, 6), "vector": (13,), "single": (1,), "scalar": ()}
MATRICES = ("matrix", "cube", "row")

# timm adapts every parameter of a group with decay, and under `always_adapt` those of the others, too.
CASES: dict[str, dict[str, Any]] = {
    "all adapted": {"lr": 0.01, "weight_decay": 0.02},
    "no bias correction": {"lr": 0.01, "weight_decay": 0.02, "bias_correction": False},
    "adapted without decay": {"lr": 0.01, "weight_decay": 0.0, "always_adapt": True},
    "none adapted": {"lr": 0.01, "weight_decay": 0.0},
    "ratio at most 1": {"lr": 0.02, "weight_decay": 0.02, "trust_clip": True},
    "other betas and eps": {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-2},
    "vectors without decay": {"lr": 0.01, "weight_decay": 0.02, "vectors": {"weight_decay": 0.0}},
    "two rates": {"lr": 0.01, "weight_decay": 0.02, "vectors": {"lr": 0.003}},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            wheel = Path(sys.argv[1])
        else:
            asked = ["--no-deps", "--dest", folder, f"timm=={VERSION}"]
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", *asked], check=True)
            (wheel,) = Path(folder).glob("timm-*.whl")
        assert wheel.name.startswith(f"timm-{VERSION}-"), wheel
        with zipfile.ZipFile(wheel) as archive:
            for name in ("lamb.py", "_helpers.py", "_types.py"):  # without __init__.py, which asks for torchvision
                archive.extract(f"timm/optim/{name}", folder)
        sys.path.insert(0, folder)
        write_golden()


def write_golden() -> None:
    from timm.optim.lamb import Lamb

    draw = torch.Generator().manual_seed(12)
    start = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    noise = {name: torch.randn((STEPS, *shape), generator=draw) for name, shape in SHAPES.items()}
    tensors = {f"{kind}/{name}": t for kind, of in (("start", start), ("noise", noise)) for name, t in of.items()}
    for case, options in CASES.items():
        for dtype in (torch.float32, torch.float64):
            params = {name: nn.Parameter(t.to(dtype, copy=True)) for name, t in start.items()}
            shared = {name: value for name, value in options.items() if name != "vectors"}
            groups: list[dict[str, Any]] = [
                {"params": [params[name] for name in MATRICES]},
                {"params": [p for name, p in params.items() if name not in MATRICES], **options.get("vectors", {})},
            ]
            optimizer = Lamb(groups, max_grad_norm=None, **shared)
            for step in range(STEPS):
                for name, p in params.items():
                    p.grad = gradient(p.detach(), noise[name][step])
                optimizer.step()
            tensors |= {f"{case}/{str(dtype)[6:]}/{name}": p.detach() for name, p in params.items()}
    GOLDEN.parent.mkdir(exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, GOLDEN, {"timm": VERSION})


def gradient(p: Tensor, noise: Tensor) -> Tensor:
    """The gradient depends on the weights, so that an early error grows."""
    return 0.3 * p + noise.to(p.dtype)


if __name__ == "__main__":
    main()
