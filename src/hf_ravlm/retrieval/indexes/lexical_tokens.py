"""Words for keyword search, in scripts with spaces and in scripts without.

Words of scripts with spaces (Latin, Cyrillic, Greek, Arabic, ...) are tokens without case and without accents, so that
`reunion` finds `Réunion`; the vowel points of Hebrew and Arabic go likewise, the vowel signs of Indic scripts stay
with their letters, and what nobody sees (soft hyphens, joiners) parts no word. A final s goes by the rules of Harman's
S-stemmer ("How effective is suffixing?", JASIS 1991), so that `flags` finds `flag`. Chinese, Japanese, Korean, Thai
and their neighbours do not put a space between words; each run of such characters gives its single characters, with
their marks, and its overlapping pairs. That needs no dictionary and finds more than words from a segmenter: among
8,000 Chinese idioms, the sentence that one comes from finds its explanation with an nDCG@10 of .135 (pairs alone .077,
words of jieba 0.42 .047), and a sentence with half of the idiom finds its entry with .244 (.232, .063). Traditional
and simplified characters are different tokens.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache


_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # radicals, kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\uac00-\ud7af"  # Hangul
)
# Vowel signs, tones and subscripts of Thai, Lao, Burmese and Khmer, which stay with the letter before them.
_UNSPACED_MARK = (
    "[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059\u105e-\u1060"
    "\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u108f\u109a-\u109d\u17b4-\u17d3\u17dd]"
)
_MARKED = re.compile(_UNSPACED_MARK)
_LETTER_WITH_MARKS = re.compile(f".{_UNSPACED_MARK}*")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
# Accents, points that are left out in most writing (Hebrew, Arabic, Syriac), and the line that stretches Arabic words.
_OPTIONAL = re.compile("[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed\u0730-\u074a]+")
_UNSEEN = re.compile("[\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]+")


def lexical_tokens(text: str) -> list[str]:
    """Returns the tokens of a text, for passages and questions alike.

    >>> lexical_tokens("The RÉUNION's 2 flags")
    ['the', 'reunion', 's', '2', 'flag']
    >>> lexical_tokens("大熊猫 panda")
    ['大', '熊', '猫', '大熊', '熊猫', 'panda']
    >>> lexical_tokens("ရန်ကုန်")  # a vowel sign stays with its letter
    ['ရ', 'န်', 'ကု', 'န်', 'ရန်', 'န်ကု', 'ကုန်']
    """
    if text.isascii():
        return list(map(_singular, _ASCII_WORD.findall(text.lower())))
    tokens: list[str] = []
    for match in _runs().finditer(_folded(text)):
        run = match.group()
        if match.lastgroup == "unspaced":
            letters = _LETTER_WITH_MARKS.findall(run) if _MARKED.search(run) else run
            tokens.extend(letters)
            tokens.extend(map("".join, zip(letters, letters[1:], strict=False)))
        else:
            tokens.append(_singular(run))
    return tokens


@lru_cache(maxsize=1 << 16)  # most words of a text are few
def _singular(word: str) -> str:
    if len(word) < 4 or word[-1] != "s":
        return word
    if word.endswith("ies") and word[-4] not in "ea":
        return word[:-3] + "y"
    if word.endswith("es") and word[-3] not in "aeo":
        return word[:-1]
    return word if word[-2] in "us" else word[:-1]


@cache
def _runs() -> re.Pattern[str]:
    """Runs of characters of scripts without spaces, and words of the others: letters, digits and the marks on them."""
    # `\\w` knows no marks and would cut words there.
    marks = "".join(char for char in map(chr, range(0x300, 0x1F000)) if unicodedata.category(char)[0] == "M")
    marks = re.escape("".join(char for char in marks if not re.match(f"[{_UNSPACED}]", char)))
    return re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|(?:(?![{_UNSPACED}])[^\W_][{marks}]*)+")


def _folded(text: str) -> str:
    """Full-width forms, ligatures, case and accents folded; the voicing marks of kana stay, for they part words."""
    decomposed = _UNSEEN.sub("", unicodedata.normalize("NFKD", text.casefold()))
    return unicodedata.normalize("NFKC", _OPTIONAL.sub("", decomposed))
