"""What both pages have: the head, where an image comes in, galleries, and how errors are shown."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import RavlmError


TITLE = "Answers with evidence"
STALE_AFTER = 3_600  # seconds until images of answers are removed from the disk
DRAWN = {"format": "png", "buttons": ["download", "fullscreen"]}  # not "share", which would publish an image elsewhere
FITTED = {"columns": 4, "height": 200, "object_fit": "contain", "fit_columns": False, **DRAWN}


def blocks(gradio: Any) -> Any:
    """An empty page, which calls nobody and keeps no images."""
    cache = (STALE_AFTER, STALE_AFTER)
    return gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=cache, fill_width=True)


def image_part(gradio: Any) -> Any:
    """Where a visitor's image comes in, as the path of the upload."""
    image = gradio.Image(
        label="Image",
        type="filepath",
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        height=260,
        elem_id="image",
    )
    # The image stays the file that came: we decode it ourselves, within limits, and say what is wrong with it.
    image.preprocess = lambda payload: payload and payload.path
    return image


def error_shower(gradio: Any) -> Callable[[Callable], Callable]:
    """A wrapper that shows the text of our own errors on the page; of all others only that there was one."""

    def show(step: Callable) -> Callable:
        @functools.wraps(step)
        def run(*given: Any) -> Any:
            try:
                return step(*given)
            except RavlmError as error:
                message = without_folders(str(error), given)
                raise gradio.Error(message, duration=None, print_exception=False) from error

        return run

    return show


def without_folders(message: str, given: Iterable[Any]) -> str:
    """A message that calls uploaded files by their names, without the folder that we keep them in.

    >>> without_folders("/tmp/page/7/kite.png: no image", ["/tmp/page/7/kite.png", 3])
    'kite.png: no image'
    """
    for part in given:
        for path in part if isinstance(part, list) else [part]:
            if isinstance(path, str) and os.path.isabs(path):
                message = message.replace(os.path.join(os.path.dirname(path), ""), "")
    return message
