"""The knowledge that belongs to a benchmark, as its official files hold it: passages whose ids its questions name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...errors import InvalidInputError
from ...retrieval import Chunking, KnowledgeBase
from ...retrieval.sources.checked_rows import OnError, SourceFault, SourceItem, SourceRow, table_from_rows
from ...retrieval.sources.chunking import chunked_rows
from ...retrieval.sources.columns import Record
from ...retrieval.sources.tables import table_records
from ...retrieval.sources.text_files import existing_file
from .files import json_entries


_WIKIPEDIA = "CC-BY-SA-3.0"  # of texts from before June 2023, as all of these are
_DEFAULT = Chunking(max_length=1000, with_heading=True)


def from_encyclopedic_vqa(
    path: str | os.PathLike[str],
    *,
    chunking: Chunking | None = None,
    on_error: OnError = "raise",
    report_file: str | os.PathLike[str] | None = None,
) -> KnowledgeBase:
    """Reads `encyclopedic_kb_wiki.json`, the two million articles of Encyclopedic-VQA, as a stream.

    A section with text is a passage; its id is that of the question's evidence, `"https://en.wikipedia.org/...#3"`;
    its title is that of the article, its `url` the address of the article.

    Args:
        path: The file, unpacked, or with gzip, bzip2 or xz.
        chunking: Cuts sections further; a chunk's `document` is then the section.
        on_error, report_file: See `KnowledgeBase`.

    Raises:
        InvalidInputError: If the file is missing, damaged or of another kind.
    """
    return _read(_encyclopedic_rows(existing_file(path)), chunking, on_error, report_file)


def from_viquae(
    path: str | os.PathLike[str],
    *,
    chunking: Chunking | None = _DEFAULT,
    on_error: OnError = "raise",
    report_file: str | os.PathLike[str] | None = None,
) -> KnowledgeBase:
    """Reads the Wikipedia of ViQuAE (`humans_with_faces.jsonl.gz` and the like), cut into passages.

    An article is called by its Wikidata id, which the questions name, or else by its Wikipedia id.

    Args:
        path: One of its files.
        chunking, on_error, report_file: As of `from_encyclopedic_vqa`.

    Raises:
        InvalidInputError: As `from_encyclopedic_vqa`.
    """
    return _read(_rows(path, _viquae_row), chunking, on_error, report_file)


def from_infoseek(
    path: str | os.PathLike[str],
    *,
    chunking: Chunking | None = _DEFAULT,
    on_error: OnError = "raise",
    report_file: str | os.PathLike[str] | None = None,
) -> KnowledgeBase:
    """Reads the six million articles of OVEN and InfoSeek (`Wiki6M_ver_1_0.jsonl`), cut into passages.

    An article is called by its Wikidata id, which `infoseek_val_withkb.jsonl` names; arguments and errors as of
    `from_viquae`.
    """
    return _read(_rows(path, _infoseek_row), chunking, on_error, report_file)


def from_m2kr(
    path: str | os.PathLike[str],
    *,
    chunking: Chunking | None = None,
    on_error: OnError = "raise",
    report_file: str | os.PathLike[str] | None = None,
) -> KnowledgeBase:
    """Reads the passages of an M2KR task (`EVQA_passages` and the like): Parquet or JSON lines.

    Arguments and errors as of `from_encyclopedic_vqa`.
    """
    return _read(_rows(path, _m2kr_row), chunking, on_error, report_file)


def _read(
    rows: Iterable[SourceItem],
    chunking: Chunking | None,
    on_error: OnError,
    report_file: str | os.PathLike[str] | None,
) -> KnowledgeBase:
    return KnowledgeBase(*table_from_rows(chunked_rows(rows, chunking) if chunking else rows, on_error, report_file))


def _rows(path: str | os.PathLike[str], row_of: Any) -> Iterator[SourceItem]:
    for record in table_records(existing_file(path)):
        if isinstance(record, SourceFault):
            yield record
            continue
        try:
            yield row_of(record)
        except (KeyError, TypeError, AttributeError) as error:
            known = ", ".join(map(str, record.values))
            yield SourceFault(record.where, InvalidInputError(f"{record.where} has no {error}; there is {known}."))


def _encyclopedic_rows(file: Path) -> Iterator[SourceItem]:
    for url, entry in json_entries(file):
        where = f"{file.name}: {url[:200]}"
        try:
            title, parts = entry["title"], zip(entry["section_titles"], entry["section_texts"], strict=True)
            for number, (heading, text) in enumerate(parts):
                if text and text.strip():
                    values = {"id": f"{url}#{number}", "text": text, "title": title, "url": url}
                    values |= {"source": "Wikipedia (Encyclopedic-VQA)", "licence": _WIKIPEDIA}
                    section = {} if number == 0 else {"section": heading}
                    yield SourceRow(where, values, {**section, "document": url})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield SourceFault(where, InvalidInputError(f"{where} is no article of the benchmark ({error})."), url)


def _viquae_row(record: Record) -> SourceRow:
    row = record.values
    known = row.get("wikidata_info") or {}
    return _article(
        record.where,
        known.get("wikidata_id") or row["wikipedia_id"],
        row["wikipedia_title"],
        "\n\n".join(part.strip() for part in row["text"]["paragraph"]),
        "ViQuAE",
    )


def _infoseek_row(record: Record) -> SourceRow:
    row = record.values
    text = row.get("wikipedia_content") or row["wikipedia_summary"]
    return _article(record.where, row["wikidata_id"], row["wikipedia_title"], text, "OVEN")


def _article(where: str, document: Any, title: str, text: str, of: str) -> SourceRow:
    url = f"https://en.wikipedia.org/wiki/{quote(title.replace(' ', '_'))}"
    values: Mapping[str, Any] = {
        **{"id": document, "text": text, "title": title, "url": url},
        **{"source": f"Wikipedia ({of})", "licence": _WIKIPEDIA},
    }
    return SourceRow(where, values, {"document": str(document)})


def _m2kr_row(record: Record) -> SourceRow:
    row = record.values
    more = {name: value for name, value in row.items() if name not in ("passage_id", "passage_content")}
    values = {"id": row["passage_id"], "text": row["passage_content"], "source": "M2KR"}
    return SourceRow(record.where, values, {name: value for name, value in more.items() if value is not None})
