"""The XML dumps of MediaWiki: where a page begins and ends, and what stands in it.

A dump is one XML document of up to a hundred gigabytes. Its texts are escaped, so `<page>` stands only where a page
begins: the stream is cut there, and each page is parsed as a document of its own. A damaged page costs that page, no
more than one page is held, and the parser never sees a document type: entities cannot be declared, let alone expanded.

The format is that of https://www.mediawiki.org/wiki/Help:Export, schemas 0.3 to 0.11.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

from ..errors import InvalidInputError
from ..retrieval.sources.checked_rows import SourceFault
from ..retrieval.sources.text_files import open_bytes


MAX_PAGE_BYTES = 32_000_000

_PAGE_START = re.compile(rb"<page[\s>]")
_PAGE_END = b"</page>"
_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 1 << 20
_TAIL_BYTES = 100
# Images and categories, by their number and by their English name, which every wiki understands.
_NO_PROSE_NAMESPACES = {"6", "14"}
_ENGLISH_NAMESPACES = {"file", "image", "category", "media"}


class Site(NamedTuple):
    """A wiki.

    Attributes:
        name: Its name as a database, such as `"enwiki"`.
        page_url: What stands before the title in the address of a page, such as `"https://en.wikipedia.org/wiki/"`.
        no_prose: Namespaces, in small letters, whose links are no text: images and categories.
    """

    name: str | None
    page_url: str | None
    no_prose: frozenset[str]

    def url(self, title: str) -> str | None:
        """The address of a page."""
        return None if self.page_url is None else self.page_url + quote(title.replace(" ", "_"), safe="/:@!$()*,;~'")


class WikiPage(NamedTuple):
    """A page in its newest revision; `model` is `"wikitext"` for articles."""

    where: str
    id: str
    namespace: str
    title: str
    is_redirect: bool
    revision: str | None
    model: str | None
    text: str


def read_site(file: Path) -> Site:
    """Reads what the head of a dump says about its wiki.

    Raises:
        InvalidInputError: If the file is no dump.
    """
    with open_bytes(file) as stream:
        head = stream.read(_HEAD_BYTES)
    if b"<mediawiki" not in head:
        raise InvalidInputError(
            f"{file}: this is not a MediaWiki dump (no <mediawiki> in it). Expected pages-articles as XML, compressed "
            "or not."
        )
    start, end = head.find(b"<siteinfo>"), head.find(b"</siteinfo>")
    whole = head[start:end] + b"</siteinfo>" if 0 <= start < end else b"<siteinfo/>"
    site = _parsed(whole, f"{file.name}: the head")
    namespaces = (each for each in site.iter("namespace") if each.get("key") in _NO_PROSE_NAMESPACES)
    no_prose = {(each.text or "").strip().lower() for each in namespaces} | _ENGLISH_NAMESPACES
    base = site.findtext("base", "").strip()
    return Site(
        site.findtext("dbname", "").strip() or None,
        base.rpartition("/")[0] + "/" if base else None,
        frozenset(no_prose - {""}),
    )


def read_pages(file: Path) -> Iterator[WikiPage | SourceFault]:
    """Yields the pages of a dump, and a fault for each that cannot be read.

    Raises:
        InvalidInputError: If the file is a damaged or cut archive.
    """
    with open_bytes(file) as stream:
        for number, page in enumerate(_page_documents(stream), start=1):
            where = f"{file.name} page {number}"
            try:
                if isinstance(page, str):
                    raise InvalidInputError(f"{where} {page}")
                yield _page(page, where)
            except InvalidInputError as error:
                yield SourceFault(where, error)


def _page_documents(stream: BinaryIO) -> Iterator[bytes | str]:
    """Cuts a dump into its pages; what is wrong with one that cannot be cut out is a string."""
    buffer = b""
    start: int | None = None  # of the current page in the buffer, `None` between pages
    is_too_long = False
    searched = 0  # up to here the buffer is known
    while chunk := stream.read(_CHUNK_BYTES):
        buffer += chunk
        while True:
            if start is None:
                found = _PAGE_START.search(buffer, searched)
                if found is None:
                    buffer = buffer[-_TAIL_BYTES:]
                    searched = max(0, len(buffer) - len(_PAGE_END))
                    break
                start, searched, is_too_long = found.start(), found.end(), False
            end = buffer.find(_PAGE_END, searched)
            again = _PAGE_START.search(buffer, searched, end if end >= 0 else len(buffer))
            if again:
                yield "begins, and before it ends another one begins."
                start, searched, is_too_long = again.start(), again.end(), False
            elif end >= 0:
                page = buffer[start : end + len(_PAGE_END)]
                is_too_long = is_too_long or len(page) > MAX_PAGE_BYTES
                yield f"has more than {MAX_PAGE_BYTES:,} bytes." if is_too_long else page
                start, searched = None, end
            else:
                is_too_long = is_too_long or len(buffer) - start > MAX_PAGE_BYTES
                searched = max(searched, len(buffer) - len(_PAGE_END))
                dropped = searched if is_too_long else start
                buffer, start, searched = buffer[dropped:], 0, searched - dropped
                break
    if start is not None or b"</mediawiki" not in buffer:
        yield "is not complete: the file ends without </mediawiki>. Was it cut?"


def _page(document: bytes, where: str) -> WikiPage:
    page = _parsed(document, where)

    def value(path: str) -> str:
        return page.findtext(path, "").strip()

    missing = [name for name in ("title", "id") if not value(name)]
    if missing:
        raise InvalidInputError(f"{where} has no {' and no '.join(missing)}. Expected a page of a MediaWiki dump.")
    return WikiPage(
        where,
        value("id"),
        value("ns") or "0",
        value("title"),
        page.find("redirect") is not None,
        value("revision[last()]/id") or None,
        value("revision[last()]/model") or None,
        page.findtext("revision[last()]/text", ""),
    )


def _parsed(document: bytes, where: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(document)
    except ElementTree.ParseError as error:
        raise InvalidInputError(f"{where} is not sound XML ({error}).") from error
