"""Passages that give away the answer: they hold its words, or show the image that is asked about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from ...metrics.answers import normalize_answer


# Letters of scripts that write spaces between words: not Thai and Lao, nor Chinese and its neighbours.
_SPACED = "[^\\W\u0e00-\u0eff\u2e80-\U0010ffff]"

_NOISE = 2  # levels of brightness that recompression may add


def holds_answer(text: str | None, answers: Sequence[str]) -> bool:
    """Whether a text holds one of the answers as whole words, or as characters in scripts without spaces.

    Case, articles and punctuation do not count.

    >>> holds_answer("The capital is Oslo.", ["oslo"]), holds_answer("a contract", ["on"])
    (True, False)
    >>> holds_answer("挪威的首都是奥斯陆。", ["奥斯陆"]), holds_answer("首都是Oslo。", ["Oslo"])
    (True, True)
    """
    if not text:
        return False
    said = normalize_answer(text)
    return any(_pattern(normalize_answer(answer)).search(said) for answer in answers if normalize_answer(answer))


@lru_cache(maxsize=65_536)
def _pattern(answer: str) -> re.Pattern[str]:
    edges = (("<!", answer[0]), ("!", answer[-1]))
    before, behind = (f"(?{look}{_SPACED})" if re.match(_SPACED, edge) else "" for look, edge in edges)
    return re.compile(before + re.escape(answer) + behind)


def image_hash(image: Image.Image) -> int:
    """A perceptual hash of 576 bits: in each colour, which of two neighbours is brighter, and which spots are bright.

    Scaling, recompression and small changes turn a few bits; another image turns a third of them.

    >>> ramp = Image.linear_gradient("L")
    >>> differing_bits(image_hash(ramp), image_hash(ramp.resize((90, 120))))
    0
    """
    image = image.convert("RGB")
    across, down, spots = (
        np.asarray(image.resize(size, Image.Resampling.BOX), np.int16) for size in ((9, 8), (8, 9), (8, 8))
    )
    bits = (np.diff(across, axis=1) > _NOISE, np.diff(down, axis=0) > _NOISE, spots > 127)
    return int.from_bytes(np.packbits(np.concatenate([part.ravel() for part in bits])).tobytes(), "big")


def differing_bits(first: int, second: int) -> int:
    """In how many bits two hashes differ, 0..576."""
    return (first ^ second).bit_count()
