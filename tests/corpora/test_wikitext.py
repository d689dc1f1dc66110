from __future__ import annotations

import pytest

from hf_ravlm.corpora.wikitext import Section, page_sections
from hf_ravlm.errors import InvalidInputError


pytest.importorskip("mwparserfromhell")


def lead(wikitext, **options):
    sections = page_sections(wikitext, **options)
    return sections[0].text if sections else ""


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        (
            "The '''wren''' is a ''small'' [[bird]] of [[Family (biology)|a family]].",
            "The wren is a small bird of a family.",
        ),
        ("Wren.<ref>Book, {{cite|p=1}}</ref> Small.<ref name=x /> End<ref name=y>a</ref>.", "Wren. Small. End."),
        (
            "[[File:Wren.jpg|thumb|A [[bird]] sings]]Wren.[[Category:Birds]][[:Category:Birds]][[de:Zaunkönig]]",
            "Wren.Category:Birds",
        ),
        ("{{Infobox bird\n| name = {{nowrap|Wren}}\n| x = {{a|[[b]]}}\n}}\nWren.", "Wren."),
        ("A\n{| class=x\n| cell || {{x}}\n|-\n| other\n|}\nB", "A\n\nB"),
        (
            "It is {{convert|5|km|mi}} or {{cvt|60|to|170|kg}} long, {{circa|1900}}{{ndash}}{{lang|fr|ici}}.",
            "It is 5 km or 60 to 170 kg long, c. 1900–ici.",
        ),
        ("Wren ({{IPA|x}}; {{lang-la|Troglodytes}}) and ({{IPA|x}}) more", "Wren (Troglodytes) and more"),
        ("see [http://a.org the page] [http://b.org] end", "see the page end"),
        ("a<!-- hidden -->b &amp; c&nbsp;d<br/>e <b>f</b> <math>E=mc^2</math>", "ab & c d\ne f E=mc^2"),
        ("* one\n* two\n: three\n__NOTOC__", "- one\n- two\nthree"),
        ("1 < 2 and a <3", "1 < 2 and a <3"),
        ("-{zh-hans:计算机;zh-hant:電腦}-和-{原文}-{{le|鹪鹩|wren}}-{H|zh-cn:A;zh-tw:B}-。", "计算机和原文鹪鹩。"),
        ("{{unclosed and '''bold''' text", "{{unclosed and bold text"),
        ("<gallery>\nA.jpg|x\n</gallery>Text<ref>never closed", "Textnever closed"),
    ],
)
def test_markup_becomes_the_words_that_a_reader_sees(wikitext, text):
    assert lead(wikitext) == text


def test_sections_keep_their_headings_and_lists_of_sources_go():
    wikitext = """Lead.
== Song ==
Loud.
=== In ''spring'' ===
Louder.
== Range ==
== References ==
* A book
=== Old ones ===
* Another book
== 参考资料 ==
* 书
"""
    assert page_sections(wikitext) == [
        Section((), "Lead."),
        Section(("Song",), "Loud."),
        Section(("Song", "In spring"), "Louder."),
    ]


def test_namespaces_of_the_wiki_are_no_prose():
    assert lead("[[Datei:W.jpg|mini|Bild]]Text [[Kategorie:Vogel]]", no_prose={"datei", "kategorie"}) == "Text"


@pytest.mark.parametrize("part", ["{{", "[[", "{{a|[[b", "<b>", "[http://a ", "<b>{{nowrap|</b>}}"])
def test_markup_that_would_take_the_parser_for_ever_is_refused(part):
    with pytest.raises(InvalidInputError, match="opened and never closed"):
        page_sections(part * 20_000)


@pytest.mark.parametrize(
    "part", ["<a ", "<ref>", "<!--", "{{x|", "<p>", "-{zh:", "( ,", "__A", "&#", "'''''a", ";a:b\n"]
)
def test_marks_that_only_look_like_markup_do_no_harm(part):
    assert isinstance(page_sections((part + "x") * 3_000 + "}}" * 3_000), list)


def test_a_page_beyond_all_measure_is_refused():
    with pytest.raises(InvalidInputError, match="4,000,001 characters"):
        page_sections("x" * 4_000_001)
