from __future__ import annotations

import bz2
import tracemalloc
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_ravlm.corpora import from_wikipedia, mediawiki_dump
from hf_ravlm.corpora.wikipedia import wikipedia_rows
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval.sources.chunking import Chunking


pytest.importorskip("mwparserfromhell")

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>dewiki</dbname>
    <base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base>
    <generator>MediaWiki 1.43</generator>
    <case>first-letter</case>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""
TAIL = "</mediawiki>\n"


def page(title="Zaunkönig", text="Ein Vogel.", page_id=12, ns=0, model="wikitext", redirect="", revision=345):
    return f"""  <page>
    <title>{escape(title)}</title>
    <ns>{ns}</ns>
    <id>{page_id}</id>{redirect}
    <revision>
      <id>{revision}</id>
      <timestamp>2026-01-02T03:04:05Z</timestamp>
      <contributor><username>Someone</username><id>99</id></contributor>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text bytes="{len(text)}" xml:space="preserve">{escape(text)}</text>
      <sha1>abc</sha1>
    </revision>
  </page>
"""


def write_dump(path, *pages, head=HEAD, tail=TAIL):
    path.write_text(head + "".join(pages) + tail, encoding="utf-8")
    return path


def test_an_article_becomes_chunks_with_title_section_and_revision(tmp_path):
    lead = "'''Zaunkönige''' sind klein. Sie singen laut.\n"
    text = lead + "== Verbreitung ==\n=== Europa ===\n[[Datei:Z.jpg]]Überall & < 3 [[Ort|Orte]]."
    path = write_dump(tmp_path / "dump.xml", page("Zaunkönig & Co/?", text))
    knowledge_base = from_wikipedia(path, chunking=Chunking(30))
    assert knowledge_base.ids == ["12-0", "12-1", "12-2"]
    assert [chunk.text for chunk in knowledge_base] == [
        "Zaunkönige sind klein.",
        "Sie singen laut.",
        "Überall & < 3 Orte.",
    ]
    first, _, last = knowledge_base
    assert (first.title, first.source, first.revision, first.licence) == (
        "Zaunkönig & Co/?",
        "dewiki",
        "345",
        "CC-BY-SA-4.0",
    )
    assert first.url == "https://de.wikipedia.org/wiki/Zaunk%C3%B6nig_%26_Co/%3F"
    assert first.metadata == {"document": "12", "chunk": 0}
    assert last.metadata == {"section": "Verbreitung > Europa", "document": "12", "chunk": 2}
    headed = from_wikipedia(path)
    assert headed[1].text == "Zaunkönig & Co/? > Verbreitung > Europa\nÜberall & < 3 Orte."


def test_only_articles_are_read(tmp_path):
    path = write_dump(
        tmp_path / "dump.xml",
        page("Kept", page_id=1),
        page("Moved", page_id=2, redirect='<redirect title="Kept" />'),
        page("Talk:Kept", page_id=3, ns=1),
        page("Script", page_id=4, model="Scribunto"),
        page("Wren (disambiguation)", page_id=5),
        page("Wren", "'''Wren''' may refer to:\n* a\n{{Disambiguation|bird}}", page_id=6),
        page("König", "* a\n{{Begriffsklärung}}", page_id=7),
        page("Nothing", "{{Infobox}}", page_id=8),
        page("Inline", "A [[wren]]{{disambiguation needed|date=2026}} sings.", page_id=9),
    )
    assert [passage.title for passage in from_wikipedia(path)] == ["Kept", "Inline"]
    assert len(from_wikipedia(path, max_articles=1)) == 1


def test_dumps_of_many_bzip2_streams_and_of_several_files_are_read(tmp_path):
    parts = [HEAD, page("A", page_id=1), page("B", page_id=2), TAIL]
    (tmp_path / "multistream.xml.bz2").write_bytes(b"".join(bz2.compress(part.encode()) for part in parts))
    other = write_dump(tmp_path / "part2.xml", page("C", page_id=3))
    knowledge_base = from_wikipedia([tmp_path / "multistream.xml.bz2", other])
    assert [passage.title for passage in knowledge_base] == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (page("Bad").replace("<title>", "<title"), "not sound XML"),
        (page("Bad").replace("Ein Vogel", "Ein &unknown; Vogel"), "not sound XML.*entity"),
        (page("Bad").replace("Ein Vogel", "\x01"), "not sound XML"),
        (page("Bad").replace("<id>12</id>", ""), "no id"),
        (page("Bad").replace("</page>", ""), "another one begins"),
        (page("Bad", "[[a " * 100), "never closed"),
    ],
)
def test_a_broken_page_costs_that_page(tmp_path, broken, reason):
    path = write_dump(tmp_path / "dump.xml", page("A", page_id=1), broken, page("B", page_id=2))
    with pytest.raises(InvalidInputError, match=f"dump.xml page 2.*{reason}"):
        from_wikipedia(path)
    knowledge_base = from_wikipedia(path, on_error="skip")
    assert [passage.title for passage in knowledge_base] == ["A", "B"]
    assert [item.where for item in knowledge_base.skipped] == ["dump.xml page 2"]


def test_a_dump_that_was_cut_says_so(tmp_path):
    whole = write_dump(tmp_path / "dump.xml", page("A", page_id=1), page("B", page_id=2)).read_bytes()
    for end in (len(whole) - 30, len(whole) - 14):  # inside a page, and behind the last one
        (tmp_path / "dump.xml").write_bytes(whole[:end])
        with pytest.raises(InvalidInputError, match="ends without </mediawiki>"):
            from_wikipedia(tmp_path / "dump.xml")
        assert len(from_wikipedia(tmp_path / "dump.xml", on_error="skip").skipped) == 1
    (tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(whole)[:-10])
    with pytest.raises(InvalidInputError, match="cannot be read to its end"):
        from_wikipedia(tmp_path / "dump.xml.bz2", on_error="skip")


def test_entities_that_a_document_type_declares_are_never_expanded(tmp_path):
    bomb = "".join(f'<!ENTITY e{level + 1} "{f"&e{level};" * 10}">' for level in range(9))
    outside = '<!ENTITY file SYSTEM "file:///etc/hostname">'
    head = f'<?xml version="1.0"?><!DOCTYPE mediawiki [<!ENTITY e0 "boom">{bomb}{outside}]>\n{HEAD}'
    pages = [page("A", page_id=1), page("Bomb").replace("Ein", "&e9;"), page("File").replace("Ein", "&file;")]
    knowledge_base = from_wikipedia(write_dump(tmp_path / "d.xml", *pages, head=head), on_error="skip")
    assert [passage.title for passage in knowledge_base] == ["A"]
    assert len(knowledge_base.skipped) == 2


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64])
def test_pages_are_found_wherever_the_stream_is_cut(tmp_path, monkeypatch, chunk_bytes):
    pages = [page("A", page_id=1), page("Bad").replace("</page>", ""), page("B", page_id=2)]
    path = write_dump(tmp_path / "dump.xml", *pages)
    whole = [type(item).__name__ for item in mediawiki_dump.read_pages(path)]
    monkeypatch.setattr(mediawiki_dump, "_CHUNK_BYTES", chunk_bytes)
    assert [type(item).__name__ for item in mediawiki_dump.read_pages(path)] == whole
    assert whole == ["WikiPage", "SourceFault", "WikiPage"]


@pytest.mark.parametrize("chunk_bytes", [64, 1 << 20])
def test_a_page_beyond_all_measure_is_passed_over_without_being_held(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(mediawiki_dump, "_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(mediawiki_dump, "MAX_PAGE_BYTES", 5_000)
    path = write_dump(tmp_path / "dump.xml", page("A", page_id=1), page("Long", "x" * 20_000), page("B", page_id=2))
    knowledge_base = from_wikipedia(path, on_error="skip")
    assert [passage.title for passage in knowledge_base] == ["A", "B"]
    assert "more than 5,000 bytes" in knowledge_base.skipped[0].reason


def test_a_dump_is_read_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(mediawiki_dump, "_CHUNK_BYTES", 1 << 14)
    pages = (page(f"T{number}", "Ein kleiner Vogel singt. " * 400, page_id=number) for number in range(300))
    path = write_dump(tmp_path / "dump.xml", *pages)
    assert path.stat().st_size > 3_000_000
    next(iter(wikipedia_rows(path)))  # what is imported on the way is no part of it
    tracemalloc.start()
    num_rows = sum(1 for _ in wikipedia_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_rows == 300
    assert peak < 1_500_000


def test_plain_articles_are_read_from_parquet(tmp_path):
    folder = tmp_path / "20231101.en"
    folder.mkdir()
    rows = [
        {"id": "7", "url": "https://en.wikipedia.org/wiki/Wren", "title": "Wren", "text": "Wrens sing.\n\nThey fly."},
        {"id": "8", "url": "https://en.wikipedia.org/wiki/W", "title": "W", "text": "W may refer to:\n\nWren"},
        {"id": "9", "url": "https://zh.wikipedia.org/wiki/X", "title": "鹪鹩 (消歧义)", "text": "鸟"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    knowledge_base = from_wikipedia(folder / "train-00000-of-00001.parquet", chunking=Chunking(12))
    assert knowledge_base.ids == ["7-0", "7-1"]
    first = knowledge_base[0]
    assert (first.text, first.title, first.url) == ("Wrens sing.", "Wren", "https://en.wikipedia.org/wiki/Wren")
    assert (first.source, first.revision, first.licence) == ("en.wikipedia.org", "20231101", "CC-BY-SA-4.0")


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "page.xml").write_text("<html></html>")
    with pytest.raises(InvalidInputError, match="not a MediaWiki dump"):
        from_wikipedia(tmp_path / "page.xml")
    pq.write_table(pa.table({"id": ["1"], "text": ["t"]}), tmp_path / "t.parquet")
    with pytest.raises(InvalidInputError, match=r"no columns \['url', 'title'\].*from_parquet"):
        from_wikipedia(tmp_path / "t.parquet")
    with pytest.raises(InvalidInputError, match="no such file"):
        from_wikipedia([tmp_path / "gone.xml"])
