"""Weak and strong scaling by arithmetic, to 64 GPUs: `python tests/benchmarks/scaling_on_paper.py`

Computing is the model's FLOPs over a share of the A100's listed 312 TFLOP/s; sending is what a rank sends in a step
(`dtrain.planning.ways.sent`) over measured rates of rings: 232 GB/s within a machine of eight A100s and 86 GB/s between two
with four 200 Gb/s InfiniBand adapters (github.com/NVIDIA/nccl-tests, issue 175). The range is from sending that is wholly
hidden behind computing to sending that is not at all. Prints the tables of the manual's page `scaling`.
"""

from __future__ import annotations

from dtrain.planning.trial import Shape, transformer_shape
from dtrain.planning.ways import sent

PEAK, SHARE = 312e12, 0.4
WITHIN, BETWEEN = 232e9, 86e9
LENGTH = 128
MODELS = {
    "BERT-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "1.5 B": {"hidden_size": 1600, "num_hidden_layers": 48, "num_attention_heads": 25, "intermediate_size": 6400},
}


def efficiency(shape: Shape, hidden: int, way: str, ranks: int, rows: float) -> tuple[float, float]:
    """Shares of the time in which a rank computes: sending hidden behind computing, and not."""
    flops = rows * LENGTH * (6.0 * shape.block * shape.layers + 12.0 * shape.layers * hidden * LENGTH)
    computing = flops / (PEAK * SHARE)
    rate = WITHIN if ranks <= 8 else BETWEEN
    sending = sent(way, shape, ranks=ranks, optimizer="lamb", precision="bf16", passes=1) / rate
    return computing / max(computing, sending), computing / (computing + sending)


def main() -> None:
    for title, rows_of in (
        ("weak scaling: 64 rows a GPU", lambda ranks: 64.0),
        ("strong scaling: 1,024 rows a step", lambda ranks: 1024 / ranks),
    ):
        print(f"\n{title}\n\n| model | way | 8 GPUs | 16 | 64 |\n|---|---|---:|---:|---:|")
        for name, sizes in MODELS.items():
            config = {"model_type": "bert", "vocab_size": 21128, **sizes}
            shape = transformer_shape(config)
            for way in ("ddp", "zero2", "fsdp2"):
                found = []
                for ranks in (8, 16, 64):
                    hidden, plain = efficiency(shape, sizes["hidden_size"], way, ranks, rows_of(ranks))
                    found.append(f"{100 * plain:.0f} to {100 * hidden:.0f} %")
                print(f"| {name} | {way} | {' | '.join(found)} |")


if __name__ == "__main__":
    main()
