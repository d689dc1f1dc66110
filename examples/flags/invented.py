"""Knows how to make up names: words and phrases that look like those of real countries and are not to be known.

Half of the words are syllables put together; the others are words of the texts, letters at random, and letters of
other scripts, so that whoever has to repeat them cannot lean on knowing how words go on.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence


ALPHABET = "abcdefghijklmnopqrstuvwxyz"
CONSONANTS = tuple("bcdfghjklmnpqrstvwxz") + (
    *("br", "ch", "dr", "gh", "kh", "ng", "sh", "st", "th", "tr", "nd", "mb", "'", "ll", "ss"),
)
VOWELS = tuple("aeiouaeiouaeiouyáéíóúâêôãõäöüåøæāēīōūășțçčšžñğı") + ("ai", "ou", "ie", "au")
# Latin with marks, Greek, Cyrillic, Arabic and a few Chinese characters.
SCRIPTS = tuple(
    chr(code)
    for first, end in ((0xC0, 0x180), (0x391, 0x3C9), (0x410, 0x450), (0x621, 0x64A), (0x4E00, 0x4E40))
    for code in range(first, end)
)
ENDINGS = "nrslmtkd"
PARTICLES = ("of", "and", "the", "de", "la", "el", "da")
MONEY = (
    *("dollar", "franc", "pound", "peso", "dinar", "rupee", "krone", "mark", "shilling", "dirham", "rial", "real"),
    *("won", "lira", "crown"),
)
PLACES = (
    *("Islands", "Island", "Republic", "City", "Territory", "Kingdom", "Coast", "North", "South", "New", "Saint"),
    *("Port", "San", "Northern", "Eastern", "United", "St.", "Central", "States", "Town", "Guinea", "Democratic"),
)
DIRECTIONS = (
    *("Northern", "Southern", "Eastern", "Western", "Central", "Middle", "South-Eastern", "North", "South"),
    *("Southeast", "Upper"),
)
PEOPLE_ENDINGS = ("n", "an", "ian", "ese", "ish", "i", "ic", "ch", "ean", "er")


class InventedNames:
    """Makes up names; everything follows from the state of `rng`.

    Args:
        words (`Sequence[str]`): Words of the texts, to be met in names too.
        names (`Sequence[str]`): Names of real places, whose words are borrowed.
        rng (`random.Random`): The only source of chance, shared with the caller.

    Example:

    ```python
    >>> InventedNames(["lion"], ["New Zealand"], random.Random(5)).phrase()
    'Lletčnil-Lion'

    ```
    """

    def __init__(self, words: Sequence[str], names: Sequence[str], rng: random.Random):
        self.words, self.names, self.rng = words, names, rng

    def word(self) -> str:
        """One word, with a capital letter where its script has some."""
        rng = self.rng
        sort = rng.random()
        if sort < 0.08:
            word = "".join(rng.choices(SCRIPTS, k=rng.randint(2, 6)))
        elif sort < 0.18:
            word = "".join(rng.choices(ALPHABET, k=rng.randint(2, 8)))
        elif sort < 0.35:
            word = rng.choice(self.words)
        elif sort < 0.50:
            word = rng.choice(rng.choice(self.names).split())
        else:
            word = "".join(self._syllable() for _ in range(rng.randint(1, 4)))
            word = (word + (rng.choice(ENDINGS) if rng.random() < 0.5 else "")).strip("'")
        return word[:1].upper() + word[1:]

    def phrase(self, most: int = 4) -> str:
        """One to about `most` words: "Kheau", "North Lion and Ostrek", "Ærn-Zealand", "Tsai (Mbo)"."""
        rng = self.rng
        words = [self.word()]
        while len(words) < most and rng.random() < 0.4:
            link = rng.random()
            if link < 0.12:
                words[-1] += "-" + self.word()
            elif link < 0.3:
                words += [rng.choice(PARTICLES), self.word()]
            elif link < 0.5:
                words.insert(rng.randint(0, len(words)), rng.choice(PLACES))
            else:
                words.append(self.word())
        if rng.random() < 0.04:
            words[-1] += "'s"
        if rng.random() < 0.04 and len(words) > 1:
            words.insert(rng.randint(0, 1), f"({self.word()})")
        return " ".join(words)

    def value(self, field: str) -> str:
        """A made-up value of a field of a country: some fields have a look of their own."""
        rng = self.rng
        if field == "currency" and rng.random() < 0.7:
            return f"{self.phrase(2)} {rng.choice(MONEY)}"
        if field == "subregion" and rng.random() < 0.6:
            return f"{rng.choice(DIRECTIONS)} {self.word()}"
        if field == "capital" and rng.random() < 0.03:
            return f"{self.word()}, {rng.choice('ABDF')}.{rng.choice('ABDC')}"
        return self.phrase(2 if field == "language" else 4)

    def people(self, name: str) -> str:
        """What the people of `name` might be called, from its first or last word: Colombia → Colombian."""
        rng = self.rng
        word = name.split()[-1 if rng.random() < 0.7 else 0].strip("()")
        if len(word) > 6 and rng.random() < 0.15:
            return word[: -rng.choice((3, 4))]  # Kyrgyzstan → Kyrgyz, Thailand → Thai
        if len(word) > 3 and rng.random() < 0.7:
            word = word.rstrip("aeiouy")[: len(word) - rng.choice([0, 0, 1, 2])] or word
        return word + rng.choice(PEOPLE_ENDINGS)

    def _syllable(self) -> str:
        return (self.rng.choice(CONSONANTS) if self.rng.random() < 0.9 else "") + self.rng.choice(VOWELS)


def exchange_words(text: str, rate: float, names: InventedNames) -> str:
    """`text` with the share `rate` of its words exchanged, most of them for other words of the texts."""
    rng = names.rng

    def exchange(match: re.Match) -> str:
        if rng.random() >= rate:
            return match[0]
        return rng.choice(names.words) if rng.random() < 0.9 else names.word()

    return re.sub(r"[^\W\d_][\w'-]*", exchange, text) if rate else text
