"""Search by group: the thing first, by one part of the question, and then what is known of it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hf_ravlm.errors import InvalidInputError, KnowledgeBaseCorruptError
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from hf_ravlm.retrieval.store import loading


COLOURS = {"robin": "red", "wren": "lime", "kingfisher": "blue"}
TEXTS = {"food": "It eats worms.", "home": "It nests in a hedge.", "voice": "It sings at dawn."}


class ColourAndWords:
    """Three numbers for the colour of the image, three for words; where both are there, words drown the colour."""

    name, fingerprint = "colours and words", "0" * 64

    def __init__(self):
        self.num_queries = 0

    def encode_queries(self, images, texts):
        number = len(images if images is not None else texts)
        self.num_queries += number
        return self._encode(images or [None] * number, texts or [None] * number)

    def encode_passages(self, texts, images):
        return self._encode(images or [None] * len(texts), texts or [None] * len(images))

    def _encode(self, images, texts):
        vectors = np.full((len(images), 6), 1e-3, np.float32)
        for vector, image, text in zip(vectors, images, texts):
            if image is not None:
                vector[:3] += np.asarray(image.convert("RGB").resize((1, 1)), np.float32).ravel() / 255
            for place, word in enumerate(("eats", "nests", "sings")):
                vector[3 + place] += 3 * (text is not None and word in text)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def picture(colour):
    return Image.new("RGB", (8, 8), colour)


@pytest.fixture(scope="module")
def knowledge_base():
    rows = [
        {"id": f"{bird}/{kind}", "text": text, "image": picture(colour), "bird": bird, "source": kind}
        for bird, colour in COLOURS.items()
        for kind, text in TEXTS.items()
    ]
    return KnowledgeBase.from_dicts([*rows, {"id": "note", "text": "It sings and eats.", "source": "note"}])


@pytest.fixture(scope="module")
def retriever(knowledge_base):
    return RavlmRetriever.build(knowledge_base, ColourAndWords(), group_by="bird", group_query="image")


def ids(found):
    return [[passage.id for passage in row] for row in found]


def test_the_image_finds_the_thing_and_the_words_order_what_is_known_of_it(retriever):
    images, texts = [picture("blue"), picture("red"), picture("blue")], ["Who sings?", "Who eats?", "Who nests?"]
    found = retriever.retrieve(images, texts, k=9)
    assert [row[0] for row in ids(found)] == ["kingfisher/voice", "robin/food", "kingfisher/home"]
    for row, bird in zip(found, ("kingfisher", "robin", "kingfisher")):
        assert sorted(passage.id for passage in row) == sorted(f"{bird}/{kind}" for kind in TEXTS)
        assert [passage.rank for passage in row] == [1, 2, 3]
        assert [passage.score for passage in row] == sorted((passage.score for passage in row), reverse=True)
    alone = [retriever.retrieve(image, text, k=9)[0] for image, text in zip(images, texts)]
    assert ids(alone) == ids(found)


def test_k_and_where_hold_within_the_group(retriever):
    assert ids(retriever.retrieve(picture("lime"), "Who sings?", k=1)) == [["wren/voice"]]
    found = retriever.retrieve(picture("lime"), "Who sings?", k=9, where={"source": ["food", "home"]})
    assert sorted(ids(found)[0]) == ["wren/food", "wren/home"]
    found = retriever.retrieve(picture("lime"), "Who sings?", k=9, where={"bird": ["robin", "kingfisher"]})
    assert {passage.metadata["bird"] for passage in found[0]} < {"robin", "kingfisher"}
    assert len(found[0]) == 3


def test_several_groups_come_best_first(retriever):
    found = ids(retriever.retrieve(picture((0, 150, 255)), "Who eats?", k=9, num_groups=2))[0]
    assert [passage.split("/")[0] for passage in found] == ["kingfisher"] * 3 + ["wren"] * 3
    assert found[0] == "kingfisher/food"
    assert len(ids(retriever.retrieve(picture("blue"), None, k=50, num_groups=50))[0]) == 10


def test_a_search_may_say_otherwise_and_words_alone_take_what_they_have(retriever):
    mixed = retriever.retrieve(picture("blue"), "Who sings?", k=4, group_by=None)[0]
    assert len({passage.metadata.get("bird") for passage in mixed}) > 1
    (alone,) = retriever.retrieve(texts="sings eats", k=9)
    assert [passage.id for passage in alone] == ["note"]  # it has no value, and stands for itself
    (by_source,) = retriever.retrieve(texts="nests", k=9, group_by="source", group_query="both")
    assert sorted(passage.id for passage in by_source) == sorted(f"{bird}/home" for bird in COLOURS)


def test_each_query_is_encoded_once_a_part(knowledge_base):
    encoder = ColourAndWords()
    retriever = RavlmRetriever.build(knowledge_base, encoder, group_by="bird", group_query="image")
    retriever.retrieve([picture("blue"), picture("red")], ["sings", "eats"], k=9)
    assert encoder.num_queries == 4


def test_words_by_bm25_within_a_group(retriever):
    found = retriever.retrieve(picture("red"), "hedge dawn", k=2, channels=("dense", "bm25"))
    assert {passage.metadata["bird"] for passage in found[0]} == {"robin"}


def test_it_is_kept_with_the_knowledge_base_and_through_changes(retriever, tmp_path):
    retriever.save_pretrained(tmp_path)
    opened = RavlmRetriever.from_pretrained(tmp_path, ColourAndWords())
    assert opened.options == retriever.options
    asked = (picture("blue"), "Who sings?", 9)
    assert ids(opened.retrieve(*asked)) == ids(retriever.retrieve(*asked))
    opened.remove("kingfisher/voice")
    opened.compact()
    assert ids(opened.retrieve(*asked))[0][0] in ("kingfisher/food", "kingfisher/home")
    opened.reencode(ColourAndWords())
    assert opened.options.group_by == "bird"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_by": "nest"}, "There is no column 'nest'.*metadata.bird"),
        ({"group_by": 3}, "group_by=3: expected the name"),
        ({"group_by": "bird", "group_query": "sound"}, 'Choose "both", "text" or "image"'),
    ],
)
def test_what_cannot_be_grouped_by_is_refused(knowledge_base, retriever, options, message):
    with pytest.raises(InvalidInputError, match=message):
        RavlmRetriever.build(knowledge_base, ColourAndWords(), **options)
    with pytest.raises(InvalidInputError, match=message):
        retriever.retrieve(picture("blue"), "sings", **options)


def test_no_groups_and_lists_are_refused(retriever):
    with pytest.raises(InvalidInputError, match="num_groups=0: expected a whole number"):
        retriever.retrieve(picture("blue"), num_groups=0)
    tagged = KnowledgeBase.from_dicts([{"id": "a", "text": "eats", "tags": ["x", "y"]}])
    with pytest.raises(InvalidInputError, match="'tags' holds list<.*>: passages are grouped by single values"):
        RavlmRetriever.build(tagged, ColourAndWords(), group_by="tags")


def test_nothing_known_gives_nothing_and_a_strangers_manifest_is_checked(monkeypatch, tmp_path):
    empty = RavlmRetriever.build(KnowledgeBase(), ColourAndWords(), group_by="bird")
    assert empty.retrieve(texts="sings") == [[]]
    empty.save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "check_grouping", lambda *_: (_ for _ in ()).throw(InvalidInputError("group_by=[]")))
    with pytest.raises(KnowledgeBaseCorruptError, match="group_by"):
        RavlmRetriever.from_pretrained(tmp_path, ColourAndWords())
