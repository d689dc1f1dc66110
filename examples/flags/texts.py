"""Knows the words: how a row of the knowledge base becomes passages that stand for themselves.

One set of pure functions serves the index, the training data and the answers, so that the reader meets in use what it
met in training. Each fact that people ask for is a passage of its own: the retriever can then put the one that
answers first. Every passage opens with what it is about and a colon; what it says stands behind the colon.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


KINDS = ("name", "capital", "language", "currency", "subregion", "flag", "meaning", "facts", "background")
DESCRIBING = ("flag", "meaning", "name")  # the first of these that there is describes a flag
WHOSE_FLAG, MEANING_OF = "Country or territory with this flag: ", "Meaning of the flag of "

_SENTENCE_END = re.compile(r"""[.!?]["')]*(?=\s+[A-Z"']|$)""")
_ABBREVIATION = re.compile(r"(\b[A-Z]|St|Dr|Mr|Mt|Gen|Sgt|Lt|Col)\.$")


def passage_texts(row: dict) -> dict[str, tuple[str, str]]:
    """The passages of one country: kind → (title, text), in the order of `KINDS`; a kind without text is left out.

    Example:

    ```python
    >>> for title, text in passage_texts({"name": "Utopia", "capital": "Amaurot", "flag_desc": "white"}).values():
    ...     print(f"[{title}] {text}")
    [Utopia] Country or territory with this flag: Utopia.
    [Capital of Utopia] Capital of Utopia: Amaurot.
    [Flag of Utopia] The flag of Utopia: white.

    ```
    """
    name = row["name"]
    texts = {"name": (name, f"{WHOSE_FLAG}{name}.")}
    labels = {"capital": "Capital of", "subregion": "Part of the world of"}
    labels["language"] = "Official languages of" if len(row.get("languages") or []) > 1 else "Official language of"
    labels["currency"] = "Currencies of" if len(row.get("currency") or []) > 1 else "Currency of"
    for kind, value in answer_values(row).items():
        texts[kind] = (f"{labels[kind]} {name}", f"{labels[kind]} {name}: {value}.")
    title = f"{MEANING_OF}{name}"
    meaning = [f"{title}: {row['flag_meaning'].strip()}."] if row.get("flag_meaning") else []
    if row.get("flag_desc"):
        shown = f"The flag of {name}: {row['flag_desc'].strip()}."
        texts["flag"] = (f"Flag of {name}", " ".join([shown, *meaning]))
    if meaning:
        texts["meaning"] = (title, *meaning)
    if fields := fact_fields(row):
        texts["facts"] = (f"More facts about {name}", facts_text(name, fields))
    if row.get("background"):
        title = f"Background of {name}"
        texts["background"] = (title, f"{title}: {cut_sentences(row['background'])}")
    return texts


def answer_values(row: dict) -> dict[str, str]:
    """What a country's capital, languages, currency and part of the world are called: kind → words, missing left out.

    Example:

    ```python
    >>> answer_values({"languages": ["Dari", "Pashto"], "subregion": "Southern Asia", "region": "Asia"})
    {'language': 'Dari, Pashto', 'subregion': 'Southern Asia (Asia)'}

    ```
    """
    values = {
        "capital": row.get("capital"),
        "language": ", ".join(row.get("languages") or []),
        "currency": ", ".join(row.get("currency") or []),
        "subregion": _part_of_the_world(row),
    }
    return {kind: _in_one_piece(value) for kind, value in values.items() if value}


def fact_fields(row: dict) -> list[tuple[str, str]]:
    """What else is known, as (key, "Label: value"), missing values left out, in their usual order."""
    area = row.get("area") or 0
    values = [
        ("official", "Official name", row.get("official")),
        ("demonym", "People", row.get("demonym")),
        ("borders", "Borders", ", ".join((row.get("borders") or [])[:8])),
        ("calling", "Calling code", row.get("calling")),
        ("area", "Area", f"{area:,} square km".replace(",", " ") if area > 0 else None),
        ("independence", "Independence", cut_words(row.get("independence") or "", 25)),
        ("symbol", "National symbol", cut_words(row.get("national_symbol") or "", 25)),
        ("colors", "National colours", row.get("national_colors")),
    ]
    return [(key, f"{label}: {_in_one_piece(value)}") for key, label, value in values if value]


def facts_text(name: str, fields: Sequence[tuple[str, str]]) -> str:
    """One passage out of the fields, in the order given (training shuffles them)."""
    return f"More facts about {name}: " + "; ".join(text for _, text in fields) + "."


def description(row: dict) -> str:
    """What a good description of a flag says: what it shows and what it means, else whose it is.

    It is a passage as it stands, so that a reader that copies can write it in one go.

    Example:

    ```python
    >>> description({"name": "Japan", "flag_desc": "white with a red disk", "flag_meaning": "the disk is the sun"})
    'The flag of Japan: white with a red disk. Meaning of the flag of Japan: the disk is the sun.'
    >>> description({"name": "Japan"})
    'Country or territory with this flag: Japan.'

    ```
    """
    texts = passage_texts(row)
    return next(texts[kind][1] for kind in DESCRIBING if kind in texts)


def parts_of_description(text: str) -> tuple[str, str]:
    """Whom a description says that the flag is of, and what it says that the flag means.

    Example:

    ```python
    >>> parts_of_description("The flag of Japan: white. Meaning of the flag of Japan: the sun.")
    ('The flag of Japan', 'the sun.')
    >>> parts_of_description("Country or territory with this flag: Japan.")
    ('Country or territory with this flag: Japan.', '')

    ```
    """
    shown, _, meaning = text.partition(MEANING_OF)
    head, _, meant = meaning.partition(": ")
    opening = shown if shown.startswith(WHOSE_FLAG) else shown.partition(": ")[0]
    return opening.strip() or head, meant


def cut_sentences(text: str, limit: int = 600) -> str:
    """The longest run of whole sentences from the start of `text` with at most `limit` characters.

    The source is cut in the middle of a word, so an unfinished last sentence goes too. If no sentence fits, the text
    is cut after a word and ends in " ...".

    Example:

    ```python
    >>> cut_sentences("It lies in St. George's. It is small. It has no", limit=40)
    "It lies in St. George's. It is small."

    ```
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    fitting = [end for end in ends if end <= limit and not _ABBREVIATION.search(text[:end])]
    if fitting:
        return text[: fitting[-1]].strip()
    return text[:limit].rsplit(" ", 1)[0].rstrip(" ,;-") + " ..."


def cut_words(text: str, limit: int) -> str:
    """The first `limit` words of `text`, with " ..." where something was left out."""
    words = text.split()
    return text if len(words) <= limit else " ".join(words[:limit]).rstrip(",;(") + " ..."


def _part_of_the_world(row: dict) -> str | None:
    region, subregion = row.get("region") or None, row.get("subregion") or None
    if subregion and region and region != subregion:
        return f"{subregion} ({region})"
    return subregion or region


def _in_one_piece(value: str) -> str:
    """A field value without the field separator inside and without white space or full stops around."""
    return re.sub(r"\s+", " ", value).replace(";", ",").strip(" .")
