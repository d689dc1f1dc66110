r"""Text of any origin, made one thing: the gate that every string passes on its way in.

Questions, passages, answers, ids, metadata and file names come from keyboards, web pages, PDF files and other
programs, so one word reaches us in several spellings that look alike. Here it gets one: the composed normal form
(NFC), and no character that nobody can see, except where it carries meaning: joiners in emoji, Persian and Indic
words, the tags of a flag such as Scotland's, one variation selector behind a character. What passed the gate passes it
again unchanged. What no writing holds is refused, with its place: half of a character pair (`"\ud83d"`: an emoji cut
in two, or bytes decoded wrongly), and control characters other than blanks and ends of lines (NUL, escape sequences).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from .errors import InvalidInputError


_ENDS_OF_LINES = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1f\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
# Nobody sees these: soft hyphen, marks of direction, fillers, byte order mark, annotations, tags, and what
# Unicode reserves as no character. Signs such as the Arabic number sign are "format" characters, too, but are seen.
_UNSEEN = (
    "\u00ad\u034f\u061c\u17b4\u17b5\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufdd0-\ufdef\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"  # 🏴 and the letters of a region
_DROPPED = re.compile(f"({_FLAG})|[{_UNSEEN}]+|(?<=[{_SELECTORS}])[{_SELECTORS}]+|(?<!\\S)[{_SELECTORS}]+")
_JOINERS = re.compile("[\u180e\u200c\u200d]")
_SUSPECT = re.compile(
    f"[{_UNSEEN}{_SELECTORS}\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\r\x0b\x0c\x1c-\x1f\x85\u180e\u200c\u200d\u2028\u2029\u2800\ud800-\udfff]"
)
# Most of most texts: a table drops it fifty times as fast as an expression reads it.
_PLAIN_ASCII = bytes(code for code in range(128) if not _SUSPECT.match(chr(code)))
_ANY_JOINER = frozenset("\u180e\u200c\u200d")
_ZERO_WIDTH_JOINER = "\u200d"
_HALVES = re.compile("[\ud800-\udfff]")
# Letters whose shape depends on their neighbours: Arabic to Khmer, Mongolian, and the later Indic scripts.
_JOINING = re.compile(
    "[\u0600-\u10ff\u1780-\u18af\u1a00-\u1bff\ua800-\ua8ff\ua900-\ua9ff\uaa00-\uabff\ufb50-\ufdcf\ufdf0-\ufdff"
    "\ufe70-\ufefe\U00010a00-\U00010fff\U00011000-\U00011fff]"
)


def clean_text(text: str, name: str = "the text") -> str:
    r"""The text in one line: as of `plain_text`, with every run of blanks one space; empty if nobody sees any of it.

    Args:
        text (`str`): Any string.
        name (`str`): What it is, for the message.

    Raises:
        InvalidInputError: If it holds half of a character pair, or a control character.

    >>> clean_text("Caf" + "e\u0301\u200b  \n au lait")
    'Café au lait'
    >>> clean_text("\u200b \ufeff")
    ''
    """
    return " ".join(plain_text(text, name).split())


def plain_text(text: str, name: str = "the text") -> str:
    r"""The text in its one spelling, with its lines and blanks as they are; every line ends in `"\n"`.

    Arguments and errors as of `clean_text`.

    >>> plain_text("two\r\nlines, one so\u00adft hyphen")
    'two\nlines, one soft hyphen'
    >>> len(plain_text("👩\u200d🚀")), len(plain_text("a\u200db"))
    (3, 2)
    """
    rest = text.encode("utf-8", "surrogatepass").translate(None, _PLAIN_ASCII).decode("utf-8", "surrogatepass")
    if _SUSPECT.search(rest) is None and unicodedata.is_normalized("NFC", text):
        return text  # nearly all texts
    text = whole_characters(text, name)
    if found := _CONTROLS.search(text):
        raise InvalidInputError(
            f"{name} holds the control character U+{ord(found[0]):04X} at position {found.start()}, which no writing "
            "has: it may be no text, or decoded wrongly. Take it out (`hf_ravlm.text.without_controls` does)."
        )
    text = _ENDS_OF_LINES.sub("\n", text).replace("\u2800", " ")  # the blank of Braille
    before = None
    while before != text:  # what is dropped may have parted a letter and its accent; twice is seldom needed
        before = text
        text = _DROPPED.sub(lambda found: found.group(1) or "", unicodedata.normalize("NFC", text))
        text = _JOINERS.sub(_kept_joiner, text)
    return text


def without_controls(text: str) -> str:
    r"""The text with a blank for every control character, as of what a model wrote or a PDF file holds.

    >>> without_controls("a\x00b\nc")
    'a b\nc'
    """
    return _CONTROLS.sub(" ", text)


def whole_characters(text: str, name: str = "the text") -> str:
    r"""The text with both halves of a pair joined, as JavaScript writes them; arguments and errors as of `clean_text`.

    >>> whole_characters("\ud83e\udd89")
    '🦉'
    """
    if text.isascii() or _HALVES.search(text) is None:
        return text
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        place, half = next((n, char) for n, char in enumerate(text) if _HALVES.match(char))
        raise InvalidInputError(
            f"{name} holds half of a character pair (U+{ord(half):04X} at position {place}), which stands for "
            "nothing. Decode its source with the right encoding, and cut text between whole characters."
        ) from None


def plain_json(value: Any, name: str = "the value") -> Any:
    r"""A JSON value with every string in it as of `plain_text`, keys too; arguments and errors as of `clean_text`.

    >>> plain_json({"pla\u200bce": ["Ko\u0308ln", 3]})
    {'place': ['Köln', 3]}
    """
    if isinstance(value, str):
        return plain_text(value, name)
    if isinstance(value, Mapping):
        return {
            plain_text(key, f"a key of {name}") if isinstance(key, str) else key: plain_json(item, name)
            for key, item in value.items()
        }
    return [plain_json(item, name) for item in value] if isinstance(value, (list, tuple)) else value


def _kept_joiner(found: re.Match[str]) -> str:
    """The joiner itself where it shapes its neighbours, nothing elsewhere."""
    text, place = found.string, found.start()
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if not before or before in _ANY_JOINER:
        return ""
    if _JOINING.match(before) and unicodedata.category(before)[0] in "LM":
        is_last = not (_JOINING.match(after) and unicodedata.category(after)[0] in "LM")
        return "" if is_last and found.group() != _ZERO_WIDTH_JOINER else found.group()
    joins_emoji = found.group() == _ZERO_WIDTH_JOINER and bool(after) and _is_emoji(before) and _is_emoji(after)
    return found.group() if joins_emoji else ""


def _is_emoji(character: str) -> bool:
    # Symbols, skin tones, and the selector behind a symbol that shows it in colour.
    return unicodedata.category(character) in ("So", "Sk") or character == "\ufe0f"
