"""Sizes in files of settings that no honest model has: they would hang or abort the process before any error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UnsafeInputError
from .durable import read_regular


_MAX_PARTS = 10_000  # layers, heads, experts: a module each
_MAX_WIDTH = 2**31 - 1
_MAX_TOKEN_ID = 2**24
_MAX_TOKENIZER_BYTES = 500_000_000
_PARTS = re.compile(r"(layer|block|stage|head|expert|depth)s?(_|$)|^n_(layer|head)|^num_hidden_groups$")
_WIDTHS = re.compile(r"(size|dim|width|positions?|embeddings|channels?)$|^d_")


def check_sizes(config: Any, name: str = "") -> None:
    """Refuses a config, or the dictionary of one, that asks for more layers than anybody has.

    Raises:
        UnsafeInputError: The setting is named.

    >>> check_sizes({"num_hidden_layers": 2**31})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    hf_ravlm.errors.UnsafeInputError: num_hidden_layers=2147483648: no model has more than 10,000 of them. ...
    """
    if not isinstance(config, Mapping):  # an object was built, and so was possible
        return
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_sizes(value, f"{key}.")
            continue
        numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for limit, pattern in ((_MAX_PARTS, _PARTS), (_MAX_WIDTH, _WIDTHS)):
            if pattern.search(str(key)) and "dim" not in str(key) * (pattern is _PARTS):
                for number in numbers:
                    if isinstance(number, (int, float)) and number > limit:
                        raise UnsafeInputError(
                            f"{name}{key}={str(number)[:40]}: no model has more than {limit:,} of them. The config is "
                            "damaged or forged; take it from where it was published."
                        )


def check_tokenizer(path: Path) -> None:
    """Refuses a `tokenizer.json` whose numbers would make compiled code ask for all memory; nothing without a file.

    Raises:
        UnsafeInputError: A number is named.
    """
    try:
        data = read_regular(path, _MAX_TOKENIZER_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnsafeInputError(f"{path}: it cannot be read ({error.strerror}).") from error
    if not re.search(rb"[\s:,\[]-?\d{8,}|[\d.][eE]\d", data):  # most have no large number, and need not be parsed
        return
    try:
        settings = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnsafeInputError(f"{path}: it is no JSON ({str(error)[:100]}).") from error
    for number in _numbers(settings):
        if number > _MAX_TOKEN_ID:
            raise UnsafeInputError(
                f"{path}: it holds the number {str(number)[:40]}, and no vocabulary is that large. The tokenizer is "
                "damaged or forged; take it from where it was published."
            )


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (Mapping, list)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(part)
