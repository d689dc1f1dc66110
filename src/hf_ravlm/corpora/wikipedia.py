"""Articles of Wikipedia, as passages that keep their title and sections.

Two forms are read: the dumps of pages and articles (`enwiki-...-pages-articles.xml.bz2`, whole or in parts, of one or
many bzip2 streams), and the Parquet files of the data set `wikimedia/wikipedia`, whose texts are plain already.
Articles are licensed under CC BY-SA 4.0, as are the dumps of other wikis of Wikimedia with few exceptions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InvalidInputError
from ..retrieval import Chunking, KnowledgeBase
from ..retrieval.sources.checked_rows import OnError, SourceFault, SourceItem, SourceRow, table_from_rows
from ..retrieval.sources.chunking import chunked_rows
from ..retrieval.sources.tables import parquet_columns, parquet_records
from ..retrieval.sources.text_files import existing_file
from .mediawiki_dump import Site, WikiPage, read_pages, read_site
from .wikitext import page_sections


LICENCE = "CC-BY-SA-4.0"

_PARQUET_COLUMNS = ("id", "url", "title", "text")
_SNAPSHOT = re.compile(r"(\d{8})\.[a-z-]+")
_TEMPLATE = re.compile(r"\{\{\s*([^|{}\n]{1,60})[|}\n]")
_DISAMBIGUATION_TEMPLATES = frozenset(
    "dab disamb disambig hndis geodis mil-unit-dis schooldis hospitaldis numberdis roaddis shipdis mathdab "
    "begriffsklärung homonymie desambiguación desambiguação disambigua 消歧义 消歧義 消歧义页 消歧義頁 "
    "曖昧さ回避 многозначность doorverwijspagina ujednoznacznienie".split()
)
_DISAMBIGUATION_TITLES = tuple(
    "(disambiguation) (消歧义) (消歧義) （消歧义） (Begriffsklärung) (homonymie) (desambiguación)".split()
)
_MAY_REFER = re.compile(
    r"\b(?:may|can|could)(?: also)?(?: commonly)? refer to\b[^.\n]{0,80}:|可[以能]?[是指]+[^。\n]{0,20}："
)


def from_wikipedia(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    chunking: Chunking | None = None,
    max_articles: int | None = None,
    on_error: OnError = "raise",
    report_file: str | os.PathLike[str] | None = None,
) -> KnowledgeBase:
    """Reads articles of Wikipedia, cut into chunks.

    Left out are redirects, pages of other namespaces or other content than wikitext, and disambiguation pages (known
    by their template, title or first lines). The articles of Parquet files have no sections.

    | column | value |
    |---|---|
    | id | the id of the page and the number of the chunk, `"12-3"` |
    | title | the title of the page |
    | url | its address |
    | revision | the id of the revision; of Parquet files the date of the snapshot, if the path has it |
    | source, licence | the name of the wiki such as `"enwiki"`, or the host of the address; `"CC-BY-SA-4.0"` |
    | metadata | `section`, the headings as `"History > Middle Ages"`; not there for the lead |

    Args:
        paths: One or several files: dumps of pages and articles (XML, compressed or not), or Parquet files with the
            columns `id`, `url`, `title` and `text`, as the data set `wikimedia/wikipedia` has them.
        chunking: How to cut; `None` means chunks of up to 1,000 characters below their title and section.
        max_articles: Stop after this many articles; `None` reads all.
        on_error: What happens to a page that cannot be read, see `KnowledgeBase`; so `report_file`.

    Raises:
        InvalidInputError: If a file is missing, cut, or of another kind, or a page cannot be read.
        ImportError: If a dump is to be read and `mwparserfromhell` is missing: pip install "hf_ravlm[wikipedia]".

    Example:

    ```python
    >>> from hf_ravlm.corpora import from_wikipedia
    >>> articles = from_wikipedia("simplewiki-latest-pages-articles.xml.bz2", max_articles=1000)  # doctest: +SKIP

    ```
    """
    rows = chunked_rows(wikipedia_rows(paths, max_articles), chunking or Chunking(with_heading=True))
    return KnowledgeBase(*table_from_rows(rows, on_error, report_file))


def wikipedia_rows(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], max_articles: int | None = None
) -> Iterator[SourceItem]:
    """Yields the articles of `from_wikipedia`, a row per section, and a fault for each page that cannot be read.

    Raises:
        InvalidInputError: If a file is missing, cut, or of another kind.
    """
    files = [existing_file(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    articles = (article for file in files for article in _articles(file))
    num_articles = 0
    for article in articles:
        if isinstance(article, SourceFault):
            yield article
            continue
        yield from article
        num_articles += 1
        if num_articles == max_articles:
            return


def _articles(file: Path) -> Iterator[list[SourceRow] | SourceFault]:
    if file.suffix == ".parquet":
        yield from _parquet_articles(file)
        return
    site = read_site(file)
    for page in read_pages(file):
        if isinstance(page, SourceFault):
            yield page
        elif _is_article(page):
            try:
                rows = _page_rows(page, site)
            except InvalidInputError as error:
                reason = InvalidInputError(f"{page.where} ({page.title!r}): {error}")
                yield SourceFault(page.where, reason, page.id)
            else:
                if rows:
                    yield rows


def _is_article(page: WikiPage) -> bool:
    if page.namespace != "0" or page.is_redirect or page.model not in (None, "wikitext"):
        return False
    if page.title.endswith(_DISAMBIGUATION_TITLES) or "__DISAMBIG__" in page.text:
        return False
    names = (match.group(1).strip().lower() for match in _TEMPLATE.finditer(page.text))
    return not any(
        name in _DISAMBIGUATION_TEMPLATES
        or ("disambiguation" in name and "need" not in name and not name.startswith("r from"))
        for name in names
    )


def _page_rows(page: WikiPage, site: Site) -> list[SourceRow]:
    values = {
        "id": page.id,
        "title": page.title,
        "url": site.url(page.title),
        "revision": page.revision,
        "source": site.name,
        "licence": LICENCE,
    }
    return [
        SourceRow(page.where, {**values, "text": text}, {"section": " > ".join(headings)} if headings else {})
        for headings, text in page_sections(page.text, site.no_prose)
    ]


def _parquet_articles(file: Path) -> Iterator[list[SourceRow] | SourceFault]:
    missing = [name for name in _PARQUET_COLUMNS if name not in parquet_columns(file)]
    if missing:
        raise InvalidInputError(
            f"{file} has no columns {missing}. Expected {list(_PARQUET_COLUMNS)} as in wikimedia/wikipedia; other "
            "tables are read with `KnowledgeBase.from_parquet`."
        )
    snapshot = _SNAPSHOT.search(file.absolute().parent.name)
    revision = snapshot.group(1) if snapshot else None
    for record in parquet_records(file, _PARQUET_COLUMNS):
        if isinstance(record, SourceFault):
            yield record
            continue
        title, text = (str(record.values[name] or "") for name in ("title", "text"))
        if not title.endswith(_DISAMBIGUATION_TITLES) and not _MAY_REFER.search(text[:300]):
            url = record.values["url"]
            host = url.split("/")[2] if isinstance(url, str) and url.count("/") > 2 else None
            values = {**record.values, "revision": revision, "source": host, "licence": LICENCE}
            yield [SourceRow(record.where, values, {})]
