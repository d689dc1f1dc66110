"""Knows WordNet's nouns: what a word can mean, what kinds a thing has, and which thing a caption is about.

A caption is read as people write them for pictures, noun phrase first: "A yellow school bus." is about the longest
end of "yellow school bus" that WordNet knows in a fitting sense. What fits is said by the lexicographer files, such as
`noun.animal` for what stands in a folder of animals.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_ravlm.corpora.wordnet import wordnet_rows
from hf_ravlm.retrieval.sources.checked_rows import SourceRow


FILES = ("data.noun", "index.noun", "noun.exc")
_END_OF_PHRASE = re.compile(
    r"[.,;:!?()—–\"“”]| (?:with|in|for|from|on|to|at|by|that|which|who|is|are|has|and|or|used|worn|made|called|"
    r"covered|playing|dancing|eating|lets|inside|hatched|making) "
)
_PARTS_OF = "pair bunch cluster head string slice quarter couple baby plant glass tube piece".split()
_ARTICLES = "a an the some two three our another".split()


@dataclass(frozen=True)
class Nouns:
    """WordNet's nouns, by id and by word.

    Attributes:
        synsets (`dict[str, dict]`): Id such as `"n02084071"` → `words`, `gloss`, `category`, `hypernyms` (ids).
        senses (`dict[str, list[str]]`): Word in small letters → ids, the most frequent sense first.
        irregular (`dict[str, str]`): Plural → singular, where no rule tells.
    """

    synsets: Mapping[str, dict]
    senses: Mapping[str, Sequence[str]]
    irregular: Mapping[str, str]

    def ancestors(self, synset: str) -> list[str]:
        """What the thing is a kind of, from the nearest to "entity", along the first parents."""
        found: list[str] = []
        while parents := self.synsets[synset]["hypernyms"]:
            synset = parents[0]
            found.append(synset)
        return found

    def all_ancestors(self, synset: str) -> set[str]:
        """What the thing is a kind of, along all parents."""
        found: set[str] = set()
        open_ids = [synset]
        while open_ids:
            new = [parent for parent in self.synsets[open_ids.pop()]["hypernyms"] if parent not in found]
            found.update(new)
            open_ids += new
        return found

    def find(self, word: str, categories: Collection[str], preferred: Collection[str] = ()) -> str | None:
        """The sense of a word: a preferred one, else the most frequent one of a fitting category."""
        for form in self._base_forms(word):
            fitting = [s for s in self.senses.get(form, ()) if self.synsets[s]["category"] in categories]
            if fitting:
                return next((synset for synset in fitting if synset in preferred), fitting[0])
        return None

    def _base_forms(self, word: str) -> Iterator[str]:
        yield word
        yield word.replace("-", " ")
        yield word.replace("-", "")
        if word in self.irregular:
            yield self.irregular[word]
        for ending, replacement in (("ies", "y"), ("ves", "fe"), ("es", "e"), ("es", ""), ("s", "")):
            if word.endswith(ending) and len(word) > len(ending) + 2:
                yield word.removesuffix(ending) + replacement


def caption_entity(
    caption: str, nouns: Nouns, categories: Collection[str], preferred: Collection[str] = ()
) -> tuple[str, str] | None:
    """What a caption is about: (id of the synset, the words that say so), `None` if WordNet does not tell.

    Args:
        caption (`str`): Such as `"A pair of closed scissors."`.
        nouns (`Nouns`): All that is known.
        categories (`Collection[str]`): Lexicographer files in which the thing may stand.
        preferred (`Collection[str]`): Synsets that win over more frequent senses.
    """
    text = caption.replace("’", "'").replace("‘", "'")
    for phrase in _END_OF_PHRASE.split(f" {text.lower()} "):
        for part in _heads_first(phrase.split()):
            for start in range(len(part)):
                words = " ".join(part[start:]).strip("'")
                if synset := nouns.find(words, categories, preferred):
                    return synset, words
    return None


def _heads_first(words: list[str]) -> list[list[str]]:
    """Where the thing may stand in a noun phrase: "a pair of scissors" is about scissors, "a crown of thorns" not."""
    words = words[1:] if words and words[0] in _ARTICLES else words
    if "of" not in words:
        return [words]
    place = words.index("of")
    head, rest = words[:place], _heads_first(words[place + 1 :])[0]
    return [rest, head] if head and head[-1] in _PARTS_OF else [head, rest]


def read_nouns(files: Mapping[str, bytes]) -> Nouns:
    """The nouns out of `FILES` of WordNet 3.0."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data.noun").write_bytes(files["data.noun"])
        rows = [row for row in wordnet_rows(folder, ["noun"]) if isinstance(row, SourceRow)]
    synsets = {
        row.values["id"]: {
            "words": row.metadata["words"],
            "gloss": row.values["text"].split(": ", 1)[1].split('; "')[0].strip(),
            "category": row.metadata["category"],
            "hypernyms": row.metadata.get("hypernyms", []),
        }
        for row in rows
    }
    senses = {}
    for line in files["index.noun"].decode("utf-8").splitlines():
        if line.strip() and not line.startswith(" "):
            fields = line.split()
            senses[fields[0].replace("_", " ")] = ["n" + offset for offset in fields[-int(fields[2]) :]]
    pairs = (line.split()[:2] for line in files["noun.exc"].decode("utf-8").splitlines() if line.strip())
    return Nouns(synsets, senses, dict(pairs))
