"""Sizes in files of settings that no honest model has: they would hang or abort the process before any error."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UnsafeInputError
from .durable import read_regular


# Layers, heads and experts are a module each; positions and words are rows of a matrix; all else is a width.
_LIMITS = (
    (re.compile(r"(layer|block|stage|head|expert|depth|group)s?(_|$)(?!dim)|^n_(layer|head)|_tokens$"), 10_000),
    (re.compile(r"(vocab|position|context|window|length|max_seq)"), 2**25),
    (re.compile(r"(size|dim|width|channel|grid|every|passages)s?($|_)|^d_"), 2**20),
)
_MAX_CONFIG_BYTES = 10_000_000
_MAX_TOKEN_ID = 2**24
_MAX_TOKENIZER_BYTES = 500_000_000


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are(value: Any, is_right: Callable[[Any], bool]) -> bool:
    """Whether a value, or each of a list, is right."""
    return all(map(is_right, value)) if isinstance(value, list) else is_right(value)


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -1 <= value <= _MAX_TOKEN_ID


def _is_size(value: Any) -> bool:
    sides = list(value.values()) if isinstance(value, Mapping) else value
    return _are(sides, lambda side: side is None or (isinstance(side, int) and 0 <= side <= 2**31))


_SETTINGS_FILES = (
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
)
_SETTING_TYPES: tuple[tuple[re.Pattern[str], str, Callable[[Any], bool]], ...] = (
    (re.compile("^(do|use|output)_|^return_dict"), "true or false", lambda value: value in (True, False)),
    (re.compile("_token_id$"), "the number of a token", lambda value: _are(value, _is_token_id)),
    (re.compile("^(rescale_factor|model_max_length)$"), "a number", _is_number),
    (re.compile("^image_(mean|std)$"), "numbers", lambda value: _are(value, _is_number)),
    (re.compile("^(size|crop_size|pad_size)$"), "whole numbers", _is_size),
)


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
        limit = next((limit for pattern, limit in _LIMITS if pattern.search(str(key))), None)
        numbers = value if isinstance(value, (list, tuple)) else [value]
        largest = max((number for number in numbers if isinstance(number, (int, float))), default=0)
        if limit is not None and largest > limit:
            raise UnsafeInputError(
                f"{name}{key}={str(largest)[:40]}: no model has more than {limit:,} of them. The config is damaged or "
                "forged; take it from where it was published."
            )


def check_settings_file(source: Any, subfolder: str | None = None) -> None:
    """Refuses a folder whose `config.json` is missing or damaged: transformers would make a model of its defaults.

    Raises:
        UnsafeInputError: Unless it is an object of JSON, or the folder is that of an adapter, or on the Hub.
    """
    folder = Path(source, subfolder or "") if isinstance(source, (str, os.PathLike)) else None
    if folder is None or not folder.is_dir() or (folder / "adapter_config.json").is_file():
        return
    try:
        settings = json.loads(read_regular(folder / "config.json", _MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)[:100]
        raise UnsafeInputError(f"{folder}: its config.json cannot be read ({reason}). Take it from a copy.") from error
    if not isinstance(settings, dict) or not settings:
        raise UnsafeInputError(f"{folder}: its config.json is no object of JSON. Take it from a copy.")


def check_setting_types(folder: Path) -> None:
    """Refuses settings of generation, images and tokens that have another type than any has, in a folder and below.

    The libraries that read them take them all, and fail when they are used.

    Raises:
        UnsafeInputError: A setting is named.
    """
    for pattern in ("{}", "*/{}"):
        for name in _SETTINGS_FILES:
            for path in folder.glob(pattern.format(name)):
                try:
                    settings = json.loads(read_regular(path, _MAX_CONFIG_BYTES))
                except (OSError, ValueError, RecursionError):  # who reads it says what is wrong
                    continue
                _check_types(settings, path)


def _check_types(settings: Any, path: Path) -> None:
    if not isinstance(settings, Mapping):
        return
    for key, value in settings.items():
        for pattern, kind, is_right in _SETTING_TYPES:
            if value is not None and pattern.search(str(key)) and not is_right(value):
                raise UnsafeInputError(
                    f"{path}: {key}={str(value)[:40]!r}: expected {kind}. The file is damaged, or was edited; take it "
                    "from a copy."
                )
        _check_types(value, path)


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
