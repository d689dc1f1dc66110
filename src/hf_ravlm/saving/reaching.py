"""Whether the Hub can be reached, asked once: its client tries every file for half a minute when it cannot."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import InvalidInputError
from .commit import hub_failure


logger = logging.getLogger(__name__)

OFFLINE = "offline"  # in the place of a name: the parts that Python packages carry
_SECONDS = 5.0


def check_spelling(name: str) -> None:
    """Refuses a name that is no folder and nearly the word `offline`, before anybody asks the Hub for it.

    Raises:
        InvalidInputError: With the word.

    >>> check_spelling("ofline")
    Traceback (most recent call last):
    hf_ravlm.errors.InvalidInputError: ofline: there is no such folder. Did you mean 'offline'?
    """
    near = difflib.get_close_matches(name.strip().lower(), [OFFLINE], cutoff=0.8)
    if near and name != OFFLINE and not os.path.exists(name):
        raise InvalidInputError(f"{name}: there is no such folder. Did you mean {OFFLINE!r}?")


@contextmanager
def hub_or_cache(name: str | None) -> Iterator[None]:
    """Within, what is loaded comes from the cache alone, if the Hub cannot be reached now.

    Args:
        name: A repository that will be asked for; `None` asks for nothing.
    """
    from huggingface_hub import HfApi, constants

    if name is None or constants.HF_HUB_OFFLINE:
        yield
        return
    try:
        HfApi().model_info(name, timeout=_SECONDS)
    except Exception as error:  # whatever it answers, it is there
        away = hub_failure(error) is not None and getattr(error, "response", None) is None
    else:
        away = False
    if away:
        logger.warning("The Hub cannot be reached. What lies in the cache is taken.")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or away
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
