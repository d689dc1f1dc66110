"""Sources of passages on the command line: their formats, and how each is read."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from .. import corpora
from ..errors import InvalidInputError
from ..pipelines.knowledge import is_stored
from ..retrieval import Chunking, KnowledgeBase
from ..retrieval.sources.text_files import plain_suffix
from .arguments import COLUMNS, FORMATS


logger = logging.getLogger(__name__)

_CORPORA = ("wordnet", "conceptnet", "wikipedia", "encyclopedic_vqa", "infoseek", "m2kr", "viquae")
_SPECIAL = sorted({name for names in FORMATS.values() for name in names})
_SUFFIXES = {
    **{"jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "tsv": "csv", "parquet": "parquet"},
    **{"pdf": "pdf", "xml": "wikipedia"},
}


def format_of(arguments: argparse.Namespace) -> str:
    """The format of the source, given or guessed.

    Raises:
        InvalidInputError: There is no source, its format cannot be guessed, or an option does not belong to it.
    """
    path: Path = arguments.source
    if not path.exists():
        raise InvalidInputError(f"{path}: there is no such file or folder. Check the path.")
    kind: str = arguments.format or guess_format(path)
    foreign = [name for name in _SPECIAL if getattr(arguments, name) is not None and name not in FORMATS[kind]]
    if foreign:
        raise InvalidInputError(f"--{foreign[0]} is not an option of the format {kind!r}. {path} was read as that.")
    return kind


def read_source(arguments: argparse.Namespace) -> KnowledgeBase:
    """Reads the passages.

    Raises:
        InvalidInputError: As of `format_of`, or an item cannot be read.
    """
    path: Path = arguments.source
    kind = format_of(arguments)
    options: dict[str, Any] = {"on_error": arguments.on_error, "report_file": arguments.report}
    for name in FORMATS[kind]:
        value = getattr(arguments, name)
        if value is not None and name == "columns":
            options |= column_names(value)
        elif value is not None and name == "chunk":
            with_heading = kind in ("folder", "pdf", *_CORPORA)
            options["chunking"] = Chunking(value, arguments.chunk_overlap, with_heading=with_heading)
        elif value is not None:
            options[name] = value
    logger.info("Reading %s as %s", path, kind)
    if kind == "stored":
        knowledge_base = KnowledgeBase.load(path)
    else:
        reader = getattr(corpora if kind in _CORPORA else KnowledgeBase, f"from_{kind}")
        knowledge_base = reader(path, **options)
    skipped, table = knowledge_base.skipped, knowledge_base.table
    if skipped:
        report = arguments.report or "--report FILE"
        logger.warning("Items that could not be used: %d. %s lists them.", len(skipped), report)
    if arguments.licence is None:
        return knowledge_base
    place = table.schema.get_field_index("licence")
    filled = pc.fill_null(table["licence"], arguments.licence)  # what states a licence keeps it
    return KnowledgeBase(table.set_column(place, table.schema.field(place), filled), skipped)


def guess_format(path: Path) -> str:
    """The format, by the name of a file or by what is in a folder.

    Raises:
        InvalidInputError: Its name says nothing.

    >>> guess_format(Path("."))
    'folder'
    """
    if path.is_dir() and is_stored(path):
        return "stored"
    if path.is_dir():
        return "wordnet" if (path / "data.noun").is_file() else "folder"
    if path.name.startswith("conceptnet-assertions"):
        return "conceptnet"
    suffix = plain_suffix(path).removeprefix(".")
    if suffix not in _SUFFIXES:
        raise InvalidInputError(
            f"{path}: its name does not say what it is. Pass --format, one of {', '.join(FORMATS)}."
        )
    return _SUFFIXES[suffix]


def other_files(folder: Path) -> list[str]:
    """What a folder holds that somebody keeps there, if it exists; an empty repository holds nothing.

    Raises:
        InvalidInputError: It is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{folder} is a file. Name a folder.")
    names = os.listdir(folder) if folder.exists() else []
    return sorted(name for name in names if not name.startswith(".") and name != "README.md")


def column_names(pairs: list[str]) -> dict[str, Any]:
    """Turns `text=caption` and the like into the arguments of the readers.

    Raises:
        InvalidInputError: A pair is not `NAME=COLUMN`, or there is no such name.

    >>> column_names(["text=caption", "id=", "metadata=year,place"])
    {'text_column': 'caption', 'id_column': None, 'metadata_columns': ['year', 'place']}
    """
    names: dict[str, Any] = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or name not in COLUMNS:
            raise InvalidInputError(
                f"--columns {pair}: expected NAME=COLUMN, with one of {', '.join(COLUMNS)} before the =."
            )
        if name == "metadata":
            names["metadata_columns"] = [part for part in column.split(",") if part]
        else:
            names[f"{name}_column"] = column or None
    return names
