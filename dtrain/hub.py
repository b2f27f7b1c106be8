"""Ask the Hugging Face hub once whether it answers, in place of half a minute of retries for every file."""

from __future__ import annotations

import functools
from collections.abc import Iterable

SECONDS = 10.0  # to answer


def not_cached(names: Iterable[str]) -> list[str]:
    """Those models of the hub that this machine has no copy of. Nothing is asked of the hub."""
    from huggingface_hub import try_to_load_from_cache

    return [name for name in names if not isinstance(try_to_load_from_cache(name, "config.json"), str)]


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
