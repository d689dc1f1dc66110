"""Sources of passages on the command line: their formats, and how each is read."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from .. import corpora
from ..errors import InvalidInputError
from ..retrieval import Chunking, KnowledgeBase
from ..retrieval.sources.text_files import plain_suffix


logger = logging.getLogger(__name__)

_TABLE = ("columns",)
# The options that each format understands beside those of all formats, by their names in the arguments.
FORMATS: dict[str, tuple[str, ...]] = {
    "folder": ("chunk",),
    "jsonl": ("chunk", *_TABLE),
    "csv": ("chunk", *_TABLE),
    "parquet": ("chunk", *_TABLE),
    "wordnet": ("parts_of_speech",),
    "conceptnet": ("languages", "relations", "min_weight"),
    "wikipedia": ("chunk", "max_articles"),
}
_CORPORA = ("wordnet", "conceptnet", "wikipedia")
_SPECIAL = sorted({name for names in FORMATS.values() for name in names})
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".xml": "wikipedia",
}
_COLUMNS = ("id", "text", "image", "source", "licence", "url", "revision", "title", "metadata")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the source and how it is read."""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a file or folder with the passages, see --format")
    group = parser.add_argument_group("reading the source")
    group.add_argument(
        "--format",
        "--kind",
        choices=FORMATS,
        help="what the source is; by default its name tells: a folder of images and texts (or of WordNet), .jsonl, "
        ".csv, .tsv, .parquet, .xml (a dump of Wikipedia), conceptnet-assertions...; compressed or not",
    )
    group.add_argument(
        "--columns",
        nargs="+",
        action="extend",
        metavar="NAME=COLUMN",
        help=f"which column of a table holds what ({', '.join(_COLUMNS)}); `id=` numbers the rows, "
        "`metadata=year,place` keeps these columns alone",
    )
    group.add_argument("--licence", metavar="NAME", help="of passages that state none, such as CC-BY-4.0")
    group.add_argument("--chunk", type=int, metavar="LENGTH", help="cut texts into chunks of so many characters")
    group.add_argument(
        "--chunk_overlap", "--overlap", type=int, default=0, metavar="LENGTH", help="repeated from chunk to chunk"
    )
    group.add_argument(
        "--on_error",
        choices=["raise", "skip"],
        default="raise",
        help="stop at an item that cannot be read, or skip it",
    )
    group.add_argument("--report", type=Path, metavar="FILE", help="list the items skipped in this file (JSON lines)")
    group.add_argument("--parts_of_speech", nargs="+", metavar="NAME", help="of WordNet: noun verb adjective adverb")
    group.add_argument("--languages", nargs="+", metavar="CODE", help="of ConceptNet; English by default")
    group.add_argument("--relations", nargs="+", metavar="NAME", help="of ConceptNet, such as IsA UsedFor")
    group.add_argument("--min_weight", type=float, metavar="WEIGHT", help="of ConceptNet's assertions")
    group.add_argument("--max_articles", type=int, metavar="NUMBER", help="of Wikipedia")


def read_source(arguments: argparse.Namespace) -> KnowledgeBase:
    """Reads the passages.

    Raises:
        InvalidInputError: If the format cannot be told, an option does not belong to it, or an item cannot be read.
    """
    path: Path = arguments.source
    kind = arguments.format or guess_format(path)
    foreign = [name for name in _SPECIAL if getattr(arguments, name) is not None and name not in FORMATS[kind]]
    if foreign:
        raise InvalidInputError(f"--{foreign[0]} is not an option of the format {kind!r}. {path} was read as that.")
    options: dict[str, Any] = {"on_error": arguments.on_error, "report_file": arguments.report}
    for name in FORMATS[kind]:
        value = getattr(arguments, name)
        if value is not None and name == "columns":
            options |= column_names(value)
        elif value is not None and name == "chunk":
            options["chunking"] = Chunking(value, arguments.chunk_overlap, with_heading=kind == "wikipedia")
        elif value is not None:
            options[name] = value
    logger.info("Reading %s as %s", path, kind)
    reader = getattr(corpora if kind in _CORPORA else KnowledgeBase, f"from_{kind}")
    knowledge_base: KnowledgeBase = reader(path, **options)
    if knowledge_base.skipped:
        logger.warning(
            "Passages left out: %d. The list is in --report, if you asked for one.", len(knowledge_base.skipped)
        )
    return knowledge_base if arguments.licence is None else with_licence(knowledge_base, arguments.licence)


def with_licence(knowledge_base: KnowledgeBase, licence: str) -> KnowledgeBase:
    """The same passages, with a licence for those that state none."""
    table = knowledge_base.table
    place = table.schema.get_field_index("licence")
    filled = pc.fill_null(table["licence"], licence)
    return KnowledgeBase(table.set_column(place, table.schema.field(place), filled), knowledge_base.skipped)


def guess_format(path: Path) -> str:
    """Tells the format by the name of a file, or by what is in a folder.

    Raises:
        InvalidInputError: If there is no such file or folder, or its name says nothing.

    >>> guess_format(Path("."))
    'folder'
    """
    if path.is_dir():
        return "wordnet" if (path / "data.noun").is_file() else "folder"
    if not path.is_file():
        raise InvalidInputError(f"{path}: there is no such file or folder. Check the path.")
    if path.name.startswith("conceptnet-assertions"):
        return "conceptnet"
    suffix = plain_suffix(path)
    if suffix not in _SUFFIXES:
        raise InvalidInputError(
            f"{path}: its name does not say what it is. Pass --format, one of {', '.join(FORMATS)}."
        )
    return _SUFFIXES[suffix]


def column_names(pairs: list[str]) -> dict[str, Any]:
    """Turns `text=caption` and the like into the arguments of the readers.

    >>> column_names(["text=caption", "id=", "metadata=year,place"])
    {'text_column': 'caption', 'id_column': None, 'metadata_columns': ['year', 'place']}
    """
    names: dict[str, Any] = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or name not in _COLUMNS:
            raise InvalidInputError(
                f"--columns {pair}: expected NAME=COLUMN, with one of {', '.join(_COLUMNS)} before the =."
            )
        if name == "metadata":
            names["metadata_columns"] = [part for part in column.split(",") if part]
        else:
            names[f"{name}_column"] = column or None
    return names
