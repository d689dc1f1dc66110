from __future__ import annotations

import gzip
import json

import pytest

from hf_ravlm.corpora import from_conceptnet
from hf_ravlm.errors import InvalidInputError


def line(relation, start, end, weight=1.0, **details):
    details = {"dataset": "/d/wiktionary/en", "license": "cc:by-sa/4.0", "sources": [], "weight": weight, **details}
    columns = [f"/a/[/r/{relation}/,{start}/,{end}/]", f"/r/{relation}", start, end]
    return "\t".join([*columns, json.dumps(details, ensure_ascii=False)])


LINES = [
    line("IsA", "/c/en/wren/n/wn/animal", "/c/en/song_bird/n"),
    line(
        "AtLocation",
        "/c/en/swan",
        "/c/en/lake",
        3.464,
        dataset="/d/conceptnet/4/en",
        license="cc:by/4.0",
        surfaceText="*Something you find at [[a lake]] is [[a swan]]",
    ),
    line("Synonym", "/c/fr/roitelet/n", "/c/en/kinglet", 2.0),
    line("RelatedTo", "/c/zh/天鹅", "/c/zh/鸟", 0.5),
    line("ExternalURL", "/c/en/wren", "http://dbpedia.org/resource/Wren"),
    line("NotDesires", "/c/en/person", "/c/en/pain", surfaceText=None),
    line("dbpedia/genusOf", "/c/en/wren", "/c/en/troglodytes"),
]


@pytest.fixture
def assertions(tmp_path):
    path = tmp_path / "conceptnet-assertions-5.7.0.csv.gz"
    path.write_bytes(gzip.compress("\n".join(LINES).encode() + b"\n"))
    return path


def test_an_assertion_becomes_a_sentence(assertions):
    knowledge_base = from_conceptnet(assertions)
    assert [passage.text for passage in knowledge_base] == [
        "wren is a kind of song bird",
        "Something you find at a lake is a swan",
        "person does not want pain",
        "wren genus of troglodytes",
    ]
    swan = knowledge_base[1]
    assert swan.id == "/a/[/r/AtLocation/,/c/en/swan/,/c/en/lake/]"
    assert (swan.title, swan.url, swan.source) == ("swan", "https://conceptnet.io/c/en/swan", "ConceptNet")
    assert (swan.revision, swan.licence, knowledge_base[0].licence) == ("5.7.0", "CC-BY-4.0", "CC-BY-SA-4.0")
    assert swan.metadata == {
        "relation": "AtLocation",
        "start": "swan",
        "end": "lake",
        "weight": 3.464,
        "language": "en",
        "dataset": "/d/conceptnet/4/en",
    }


def test_languages_relations_and_weights_are_chosen(assertions):
    def read(**options):
        return [passage.metadata["language"] for passage in from_conceptnet(assertions, **options)]

    assert read(languages=["zh"]) == ["zh"]
    assert read(languages=["fr", "en"], relations=["Synonym"]) == ["fr/en"]
    assert read(languages=None, min_weight=2.0) == ["en", "fr/en"]
    assert len(read(languages=None)) == 6
    assert from_conceptnet(assertions, languages=["zh"])[0].url.startswith("https://conceptnet.io/c/zh/%E5")
    with pytest.raises(InvalidInputError, match=r"languages='en' is a string.*\['en'\]"):
        from_conceptnet(assertions, languages="en")


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "a\tb",
        LINES[0].replace('"weight"', '"wait"'),
        LINES[0] + "}",
        LINES[0].replace("\t", " "),
        LINES[0] + "\tx",
    ],
)
def test_a_broken_line_is_named_or_skipped(tmp_path, broken):
    (tmp_path / "assertions.csv").write_text("\n".join([LINES[0], broken, LINES[1]]), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="assertions.csv line 2"):
        from_conceptnet(tmp_path / "assertions.csv")
    knowledge_base = from_conceptnet(tmp_path / "assertions.csv", on_error="skip")
    assert len(knowledge_base) == 2
    assert [item.where for item in knowledge_base.skipped] == ["assertions.csv line 2"]
    assert knowledge_base[0].revision is None


def test_a_cut_archive_stops_even_when_items_may_be_skipped(assertions):
    assertions.write_bytes(assertions.read_bytes()[:-12])
    with pytest.raises(InvalidInputError, match="cannot be read to its end"):
        from_conceptnet(assertions, on_error="skip")
