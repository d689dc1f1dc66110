"""What a command brings back: a record for programs, lines for people, and whether all is well."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a command brings back.

    Args:
        record: JSON values, for `--json`.
        text: The same for people.
        exit_code: 0 if all is well, 1 if damage was found.
    """

    record: Mapping[str, Any]
    text: str
    exit_code: int = 0


def written(files: Iterable[str]) -> str:
    """The files that a command wrote, a line each."""
    return "\n".join(["Written:", *(f"  {name}" for name in files)])


def size(num_bytes: float) -> str:
    """A number of bytes for people.

    >>> size(812), size(1_234_567)
    ('812 bytes', '1.2 MB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {name}"
    return f"{num_bytes:.0f} bytes"


def one_line(text: str) -> str:
    r"""A text without line breaks and other signs that steer a terminal.

    >>> one_line("A wren\nis \x1b[31msmall.")
    'A wren is [31msmall.'
    """
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


# What the library says to programmers, and what that is called here.
_SPOKEN = (
    (re.compile(r"`?\b(on_error|index|encoder|repo_type)=\"(\w+)\"`?"), r"--\1 \2"),
    (re.compile(r"`?\b(allow_missing_licence|private|drop_damaged|overwrite|update)=True`?"), r"--\1"),
    (re.compile(r"`RavlmRetriever\.build\([^`]*`|RavlmRetriever\.build\([^)]*\)"), "`hf-ravlm index build`"),
    (re.compile(r"`?RavlmRetriever\.save_pretrained`?(\([^)]*\)`)?"), "`hf-ravlm index build`"),
    (
        re.compile(r"`?\b(\w+)_column=(\.\.\.|None)`?"),
        lambda found: f"--columns {found[1]}={'' if found[2] == 'None' else 'NAME'}",
    ),
    (re.compile(r"\b(image_root|numeric_columns|delimiter)=(?=[\w'\"])"), r"--\1 "),
    (re.compile(r"`?\b(image_root|numeric_columns|delimiter|reader_name)=`?"), r"--\1"),
    (re.compile(r"`(prune|quantize|recover|drop_duplicates|questions|index)=`"), r"--\1"),
    (re.compile(r'\bcolumns=\{"(\w+)": \.\.\.\}'), r"--columns \1=NAME"),
    (re.compile(r"\bsees_images="), "--words_only"),
    (re.compile(r'\bmodel="([^"]*)"'), r"--model \1"),
    (re.compile(r"`update` to replace"), "--update to change"),
    (re.compile(r"`chunking=Chunking\(\)`"), "--chunk 1000"),
    (
        re.compile(r"max_length=(\d+) and overlap=(-?\d+) do not fit.*"),
        r"--chunk \1 and --chunk_overlap \2 do not fit: the overlap has to be the smaller.",
    ),
    (re.compile(r"; `KnowledgeBase\(\)` makes an empty knowledge base on purpose"), ""),
    (re.compile(r",? or raise\s`max_\w+` if you trust its source"), ""),
    (re.compile(r" \(`hf_ravlm\.text\.without_controls` does\)"), ""),
    (re.compile(r"`compact\(purge=True\)`"), "`hf-ravlm index compact --purge`"),
    (re.compile(r"`hf_ravlm\.retrieval\.repair_store`"), "`hf-ravlm index repair`"),
    (re.compile(r"`drop_damaged`"), "--drop_damaged"),
)


def in_words_of_the_command_line(message: str) -> str:
    """A message of the library as the user of `hf-ravlm` can follow it.

    >>> in_words_of_the_command_line('Line 3 is no JSON. Pass `on_error="skip"` to leave it out.')
    'Line 3 is no JSON. Pass --on_error skip to leave it out.'
    >>> in_words_of_the_command_line("Name the right one with `id_column=...`. `id_column=None` numbers the rows.")
    'Name the right one with --columns id=NAME. --columns id= numbers the rows.'
    """
    for pattern, words in _SPOKEN:
        message = pattern.sub(words, message)
    return message
