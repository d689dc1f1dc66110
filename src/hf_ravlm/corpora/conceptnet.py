"""The assertions of ConceptNet 5.5 to 5.7: one per line, made into one sentence each.

A line has five columns between tabs: the URI of the assertion, its relation, its start, its end, and a JSON object
with the data set, the licence, the sources, the weight and, for what people wrote, the sentence itself:

    /a/[/r/IsA/,/c/en/wren/n/,/c/en/bird/]  /r/IsA  /c/en/wren/n  /c/en/bird  {"weight": 2.0, "surfaceText": ...}

ConceptNet as a whole is licensed under CC BY-SA 4.0; parts of it are CC BY 4.0, and each line says which.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import quote

from ..errors import InvalidInputError
from ..retrieval import KnowledgeBase
from ..retrieval.sources.checked_rows import OnError, SourceRow, table_from_rows
from ..retrieval.sources.text_files import existing_file, parsed_lines


LICENCE = "CC-BY-SA-4.0"  # where a line does not name its own

_NO_SENTENCE = "ExternalURL"  # its end is a page of another site
_SENTENCES = {
    "Antonym": "{start} is the opposite of {end}",
    "AtLocation": "{start} can be found at {end}",
    "CapableOf": "{start} can {end}",
    "Causes": "{start} causes {end}",
    "CausesDesire": "{start} makes one want to {end}",
    "CreatedBy": "{start} is made by {end}",
    "DefinedAs": "{start} is defined as {end}",
    "DerivedFrom": "the word {start} contains the word {end}",
    "Desires": "{start} wants {end}",
    "DistinctFrom": "{start} is not the same as {end}",
    "Entails": "{start} implies {end}",
    "EtymologicallyDerivedFrom": "the word {start} comes from the word {end}",
    "EtymologicallyRelatedTo": "the words {start} and {end} have a common origin",
    "FormOf": "{start} is a form of the word {end}",
    "HasA": "{start} has {end}",
    "HasContext": "{start} is a word used in the context of {end}",
    "HasFirstSubevent": "{start} begins with {end}",
    "HasLastSubevent": "{start} ends with {end}",
    "HasPrerequisite": "{start} needs {end} first",
    "HasProperty": "{start} is {end}",
    "HasSubevent": "{end} happens during {start}",
    "InstanceOf": "{start} is an example of {end}",
    "IsA": "{start} is a kind of {end}",
    "LocatedNear": "{start} is found near {end}",
    "MadeOf": "{start} is made of {end}",
    "MannerOf": "{start} is a way to {end}",
    "MotivatedByGoal": "one would {start} in order to {end}",
    "NotCapableOf": "{start} cannot {end}",
    "NotDesires": "{start} does not want {end}",
    "NotHasProperty": "{start} is not {end}",
    "NotIsA": "{start} is not a kind of {end}",
    "NotUsedFor": "{start} is not used for {end}",
    "ObstructedBy": "{start} is hindered by {end}",
    "PartOf": "{start} is a part of {end}",
    "ReceivesAction": "{start} can be {end}",
    "RelatedTo": "{start} is related to {end}",
    "SimilarTo": "{start} is similar to {end}",
    "SymbolOf": "{start} stands for {end}",
    "Synonym": "{start} means the same as {end}",
    "UsedFor": "{start} is used for {end}",
}


def from_conceptnet(
    path: str | os.PathLike[str],
    *,
    languages: Collection[str] | None = ("en",),
    relations: Collection[str] | None = None,
    min_weight: float = 0.0,
    on_error: OnError = "raise",
    report_file: str | os.PathLike[str] | None = None,
) -> KnowledgeBase:
    """Reads the assertions of ConceptNet 5, one passage each, a line at a time.

    | column | value |
    |---|---|
    | id | the URI of the assertion |
    | text | the sentence that people wrote, else one made from the relation (in English): `"wren is a kind of bird"` |
    | title | the start, `"wren"` |
    | url | the page of the start |
    | source | `"ConceptNet"` |
    | revision | the version, such as `"5.7.0"`, if the name of the file has it |
    | licence | that of the line, such as `"CC-BY-4.0"` |
    | metadata | `relation` (`"IsA"`), `start`, `end`, `weight` (a number above 0, mostly 1.0), `language`, `dataset` |

    Args:
        path: The file of assertions, such as `conceptnet-assertions-5.7.0.csv.gz`, compressed or not.
        languages: Keep assertions whose two ends are both in one of these languages; `None` keeps all.
        relations: Keep these, such as `["IsA", "UsedFor"]`; `None` keeps all but links to other sites.
        min_weight: Keep assertions of at least this weight.
        on_error: What happens to a line that is not an assertion, see `KnowledgeBase`; so `report_file`.

    Raises:
        InvalidInputError: If the file is missing, a line is not an assertion, or `languages` or `relations` is a
            string.

    Example:

    ```python
    >>> from hf_ravlm.corpora import from_conceptnet
    >>> uses = from_conceptnet("conceptnet-assertions-5.7.0.csv.gz", relations=["UsedFor"])  # doctest: +SKIP

    ```
    """
    for name, names in (("languages", languages), ("relations", relations)):
        if isinstance(names, str):
            raise InvalidInputError(f"{name}={names!r} is a string. Expected a list such as [{names!r}], or None.")
    file = existing_file(path)
    version = re.search(r"assertions-(\d+(?:\.\d+)+)", file.name)

    def row_of(line: str, where: str) -> SourceRow | None:
        uri, relation, start_uri, end_uri, details_json = _columns(line, where)
        (start_language, start), (end_language, end) = _term(start_uri), _term(end_uri)
        is_sentence = relation != _NO_SENTENCE and start and end
        if not is_sentence or (relations is not None and relation not in relations):
            return None
        if languages is not None and not (start_language in languages and end_language in languages):
            return None
        try:
            details = json.loads(details_json)
            weight = float(details["weight"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidInputError(
                f"{where}: the last column is not a JSON object with a weight ({type(error).__name__}: {error})."
            ) from error
        if weight < min_weight:
            return None
        licence = str(details.get("license"))
        values = {
            "id": uri,
            "text": _sentence(relation, start, end, details.get("surfaceText")),
            "title": start,
            "url": "https://conceptnet.io" + quote(start_uri),
            "source": "ConceptNet",
            "revision": version and version[1],
            # `cc:by-sa/4.0` is `CC-BY-SA-4.0`.
            "licence": re.sub("[:/]", "-", licence).upper() if licence.startswith("cc:") else LICENCE,
        }
        metadata = {
            "relation": relation,
            "start": start,
            "end": end,
            "weight": weight,
            "language": "/".join(dict.fromkeys([start_language, end_language])),
            "dataset": details.get("dataset"),
        }
        return SourceRow(where, values, metadata)

    return KnowledgeBase(*table_from_rows(parsed_lines(file, row_of), on_error, report_file))


def _columns(line: str, where: str) -> list[str]:
    columns = line.split("\t")
    if len(columns) != 5 or not columns[0].startswith("/a/") or not columns[1].startswith("/r/"):
        raise InvalidInputError(
            f"{where} is not an assertion: {line[:60]!r}. Expected five columns between tabs: URI, relation, start, "
            "end, JSON."
        )
    columns[1] = columns[1].removeprefix("/r/")
    return columns


def _term(uri: str) -> tuple[str, str]:
    """`/c/en/ice_cream/n/wn/food` is `("en", "ice cream")`; the page of another site gives two empty texts."""
    parts = uri.split("/")
    return (parts[2], parts[3].replace("_", " ")) if len(parts) > 3 and parts[1] == "c" else ("", "")


def _sentence(relation: str, start: str, end: str, surface: Any) -> str:
    """What people wrote, `*Something at [[a lake]] is [[a swan]]`, without the marks; else a made sentence."""
    written = surface.replace("[[", "").replace("]]", "").lstrip("*").strip() if isinstance(surface, str) else ""
    if written or relation in _SENTENCES:
        return written or _SENTENCES[relation].format(start=start, end=end)
    # A relation of a later version: its name in words.
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", relation.rsplit("/", 1)[-1]).lower()
    return f"{start} {words} {end}"
