"""Ask the Hugging Face hub once whether it answers, in place of half a minute of retries for every file."""

from __future__ import annotations

import functools

SECONDS = 10.0  # to answer


@functools.cache
def ask_hub() -> None:
    """If the hub cannot be reached, make its libraries use only their caches for the rest of this process.

    Without a network each file that they ask for is tried six times, which takes 26 s a file.
    """
    from huggingface_hub import constants, get_session  # only where a recipe names something of the hub

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # its class depends on the HTTP library of huggingface_hub
        constants.HF_HUB_OFFLINE = True
