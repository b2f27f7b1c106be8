"""Where the host waits for the device inside of a step, and why: by file, function and kind. Nothing else may.

A wait lets the device run dry while the host prepares what comes next. The tests on the pretended device find every one
(`test_pretended.py`), and fail where one is missing here, or is here and no longer happens.
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
