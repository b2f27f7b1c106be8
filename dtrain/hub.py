"""Ask the Hugging Face hub once whether it answers, in place of half a minute of retries for every file."""

from __future__ import annotations

import functools
from collections.abc import Iterable

SECONDS = 10.0  # to wait for an answer


def not_cached(names: Iterable[str]) -> list[str]:
    """The hub models among `names` of which this machine has no copy. No request is sent to the hub."""
    from huggingface_hub import try_to_load_from_cache

    return [name for name in names if not isinstance(try_to_load_from_cache(name, "config.json"), str)]


@functools.cache
def ask_hub() -> None:
    """If the hub cannot be reached, make its libraries use only their caches for the rest of this process.

    Without a network they request each file six times, which takes 26 s a file.
    """
    from huggingface_hub import constants, get_session  # imported only where a recipe names a hub model

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # its class depends on the HTTP library of huggingface_hub
        constants.HF_HUB_OFFLINE = True
