"""Answers and captions in any script: a normaliser that knows Unicode, and words where no spaces part them.

The official normalisers know ASCII marks only: to them `北京。` is not `北京`, and `−5` is not `-5`. The one here
is for people who do not write ASCII, beside the official ones, since published figures are what those say.

Chinese words are those of `rjieba` (the dictionary of jieba, with which COCO-CN and its kin are scored; MIT, 5 MB),
Thai ones those of `pythainlp` (Apache-2.0). Japanese, Lao, Khmer and Burmese are counted by character, as SacreBLEU
counts Chinese: the segmenters that are kept up weigh 70 to 200 MB.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable

from ..errors import InvalidInputError


LANGUAGES = ("characters", "zh", "th")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SIGN = re.compile(r"(?<![\w.])-(?=\.?\d)")
_KEPT_POINT = re.compile(r"(?<=\d)\.(?=\d)")
# Thai, Lao, Burmese, Khmer, Han, kana: between their words stands nothing.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
_CHARACTER = re.compile(f"([{_UNSPACED}\uf900-\ufaff\U00020000-\U0003ffff])")
# What the normal form parts and dictionaries do not: am of Thai and Lao.
_PARTED_VOWELS = {"\u0e4d\u0e32": "\u0e33", "\u0ecd\u0eb2": "\u0eb3"}
_UNSEEN = frozenset("\u00ad\u0640\ufeff")  # soft hyphen, the line that stretches Arabic words, byte order mark


def normalize_unicode_answer(text: str) -> str:
    """As `normalize_answer`, for all scripts: one form of every character, no marks, no English articles.

    Full-width forms, ligatures and letters with accents have one form (NFKC), case is folded, digits are those of
    ASCII, every dash is `-`. Marks go (but not the sign of a number, nor its decimal point), and so do commas in it.

    >>> [normalize_unicode_answer(text) for text in ("北京。", "\u22125,000 °C", "¿Cuál?")]
    ['北京', '-5000 °c', 'cuál']
    >>> [normalize_unicode_answer(text) for text in ("ＴＨＥ　ｆｌａｇ！", "٣٫٥", "Straße")]
    ['flag', '3.5', 'strasse']
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    for parted, whole in _PARTED_VOWELS.items():
        text = text.replace(parted, whole)
    text = "".join(map(_plain_character, text))
    text = _SIGN.sub("\0", _KEPT_POINT.sub("\1", text))
    text = "".join(char for char in text if not _is_mark(char))
    return " ".join(_ARTICLES.sub(" ", text.replace("\0", "-").replace("\1", ".")).split())


def unicode_tokens(text: str, language: str = "characters") -> list[str]:
    """The words of a normalised text, for F1 and for caption metrics.

    Args:
        text (`str`): An answer or a caption.
        language (`str`): `"zh"` or `"th"` for the words of Chinese or Thai; `"characters"` makes every character of a
            script without spaces a word, with the signs above and below it. Words with spaces are words in all.

    Raises:
        InvalidInputError: The language is not known.
        ImportError: The package for it is missing; the message says which.

    >>> unicode_tokens("一只 red 猫。")
    ['一', '只', 'red', '猫']
    >>> unicode_tokens("น้ำ")
    ['น้', 'ำ']
    """
    if language not in LANGUAGES:
        raise InvalidInputError(f"language={language!r} is not known. Choose one of {', '.join(LANGUAGES)}.")
    words = normalize_unicode_answer(text).split()
    cut = _CUTTERS[language]
    return [part for word in words for part in (cut(word) if _CHARACTER.search(word) else [word])]


def _characters(word: str) -> list[str]:
    parts: list[str] = []
    for part in filter(None, _CHARACTER.split(word)):
        if parts and unicodedata.category(part[0])[0] == "M" and _CHARACTER.match(parts[-1]):
            parts[-1] += part
        else:
            parts.append(part)
    return parts


def _chinese(word: str) -> list[str]:
    try:
        import rjieba
    except ImportError as error:
        raise _missing("Chinese", "rjieba") from error
    return list(rjieba.cut(word))


def _thai(word: str) -> list[str]:
    try:
        from pythainlp.tokenize import word_tokenize
    except ImportError as error:
        raise _missing("Thai", "pythainlp") from error
    return list(word_tokenize(word, engine="newmm", keep_whitespace=False))


_CUTTERS: dict[str, Callable[[str], list[str]]] = {"characters": _characters, "zh": _chinese, "th": _thai}


def _missing(language: str, package: str) -> ImportError:
    return ImportError(
        f'The words of {language} need {package}: pip install "hf_ravlm[multilingual]". language="characters" needs '
        "nothing and counts every character."
    )


def _plain_character(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Pd" or char == "\u2212":
        return "-"
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if char == "\u066b":  # the decimal point of Arabic
        return "."
    return "" if category == "Cf" or char in _UNSEEN else char


def _is_mark(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char)[0] == "P"
