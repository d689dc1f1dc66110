"""Numbers that a caller gives: refused in words where they are none, before anything is computed with them."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from .errors import InvalidInputError


def check_whole(name: str, value: Any, lowest: int, meaning: str = "") -> None:
    """Raises `InvalidInputError` unless a value is a whole number of at least `lowest`.

    >>> check_whole("k", "3", lowest=1)
    Traceback (most recent call last):
    hf_ravlm.errors.InvalidInputError: k='3': expected a whole number of at least 1
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < lowest:
        raise InvalidInputError(f"{name}={value!r}: expected a whole number of at least {lowest}{meaning}")


def check_between(name: str, value: Any, lowest: float, highest: float) -> None:
    """Raises `InvalidInputError` unless a value is a number from `lowest` to `highest`.

    >>> check_between("threshold", 1.5, 0, 1)
    Traceback (most recent call last):
    hf_ravlm.errors.InvalidInputError: threshold=1.5: expected a number from 0 to 1
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not lowest <= float(value) <= highest:
        raise InvalidInputError(f"{name}={value!r}: expected a number from {lowest} to {highest}")
