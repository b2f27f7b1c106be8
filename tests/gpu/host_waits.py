"""The places where the host waits for the device within a step, by file, function and kind, with the reasons. There may
be no others.

After a wait the device is idle until the host has prepared the next kernels. The tests on the simulated device
(`test_pretended.py`) find every wait, and fail if one is not listed here, or is listed and no longer happens.
"""

from __future__ import annotations

HOST_WAITS = {
    ("engines/engine.py", "Engine.loss_scale", "item"): (
        "float16 alone: whether a step overflowed decides if the schedule goes on; once a step"
    ),
    ("engines/engine.py", "Engine.step", "item"): (
        "float16 with LAMB or SGD: torch's scaler asks before it calls an optimizer that does not ask by itself; once a step"
    ),
    ("models/recurrent.py", "read_both_ways", "copy to the host"): (
        "LSTMs: packed sequences need each text's length on the host; once a pass"
    ),
    ("tasks/seq2seq/task.py", "Seq2Seq.outputs", "item"): (
        "encoder-decoders: transformers asks of each of three masks whether there is padding at all; three times a pass"
    ),
    ("students/ways.py", "_not_finite", "tolist"): (
        "peers: one that has diverged leaves before the others learn from it; twice a micro-batch, for all peers at once"
    ),
}
