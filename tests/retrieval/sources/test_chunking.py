from __future__ import annotations

import random

import pytest
from PIL import Image

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval import KnowledgeBase
from hf_ravlm.retrieval.sources.chunking import Chunking, split_text


TEXT = """The wren is small. It sings "loudly!" in May.

鹪鹩很小。它在五月唱歌！“真的吗？”他问。

- one line
- another line without an end
"""


def random_text(seed: int) -> str:
    parts = [
        "wren",
        "Robin",
        " ",
        "  ",
        "\n",
        "\n\n",
        ". ",
        "! ",
        "。",
        "？",
        "鹪鹩",
        "e.g.",
        "x" * 30,
        '"',
        "\t",
        "…",
        "\u00a0",
    ]
    generator = random.Random(seed)
    return "".join(generator.choice(parts) for _ in range(generator.randrange(1, 200)))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("max_length", [1, 7, 40, 1000])
def test_chunks_without_overlap_are_the_text_and_fit(seed, max_length):
    text = random_text(seed) + "."
    chunks = split_text(text, Chunking(max_length))
    assert "".join(chunks) == text
    assert all(0 < len(chunk) <= max_length for chunk in chunks)


@pytest.mark.parametrize("seed", range(20))
def test_chunks_with_overlap_cover_the_text_in_order_and_fit(seed):
    text = random_text(seed) + "."
    overlap = 12
    chunks = split_text(text, Chunking(40, overlap=overlap))
    covered = 0  # every chunk goes on where the last one ended, or up to `overlap` before that
    for chunk in chunks:
        assert len(chunk) <= 40
        starts = [start for start in range(max(0, covered - overlap), covered + 1) if text.startswith(chunk, start)]
        assert starts
        assert starts[0] + len(chunk) > covered
        covered = starts[0] + len(chunk)
    assert covered == len(text)


def test_cuts_fall_between_paragraphs_then_sentences_then_lines_then_words():
    paragraphs = [chunk.strip() for chunk in split_text(TEXT, Chunking(50))]
    assert paragraphs == [part.strip() for part in TEXT.split("\n\n")]
    sentences = [chunk.strip() for chunk in split_text(TEXT, Chunking(30))]
    assert sentences == [
        "The wren is small.",
        'It sings "loudly!" in May.',
        "鹪鹩很小。它在五月唱歌！“真的吗？”他问。",
        "- one line",
        "- another line without an end",
    ]
    assert split_text("one two three", Chunking(8)) == ["one two ", "three"]
    assert split_text("abcdefgh", Chunking(3)) == ["abc", "def", "gh"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Wren sings. It rains.", ["Dr. Wren sings. ", "It rains."]),
        ("It is by J. Finch. Good.", ["It is by J. Finch. ", "Good."]),
        ("It left... and came. Fine!", ["It left... and came. ", "Fine!"]),
        ('He said: "Go." She went.', ['He said: "Go." ', "She went."]),
        ("About 3.5 km. Far.", ["About 3.5 km. ", "Far."]),
        ("他说：“好。”然后走了。真的？", ["他说：“好。”", "然后走了。", "真的？"]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, sentences):
    longest = max(map(len, sentences))
    assert split_text(text, Chunking(longest)) == sentences


def test_overlap_repeats_whole_sentences():
    chunks = split_text("One is. Two is. Three is. Four is.", Chunking(18, overlap=9))
    assert chunks == ["One is. Two is. ", "Two is. Three is. ", "Four is."]


def test_length_may_be_tokens():
    words = Chunking(3, length=lambda text: len(text.split()))
    assert split_text("Aa bb. Cc dd ee. Ff. Gg hh.", words) == ["Aa bb. ", "Cc dd ee. ", "Ff. Gg hh."]


@pytest.mark.parametrize(("max_length", "overlap"), [(0, 0), (5, 5), (5, -1), (-1, 0)])
def test_budgets_that_cannot_be_kept_are_refused(max_length, overlap):
    with pytest.raises(InvalidInputError, match="Expected 1 <= max_length"):
        Chunking(max_length, overlap=overlap)


@pytest.mark.parametrize("text", ["." * 50_000, ". " * 25_000, "\n \n" * 20_000, '"' * 50_000, "x" * 50_000])
def test_texts_that_invite_endless_searching_are_cut_all_the_same(text):
    assert "".join(split_text(text + "a", Chunking(30_000))) == text + "a"


def test_chunks_of_a_row_keep_what_belongs_to_all_of_it():
    row = {"id": 12, "text": "One is. Two is. Three is.", "title": "Numbers", "licence": "MIT", "revision": "7"}
    chunks = KnowledgeBase.from_dicts([{**row, "year": 1999}, {"id": "b", "text": "Short."}], chunking=Chunking(10))
    assert chunks.ids == ["12-0", "12-1", "12-2", "b-0"]
    assert [chunk.text for chunk in chunks] == ["One is.", "Two is.", "Three is.", "Short."]
    assert {(chunk.title, chunk.licence, chunk.revision) for chunk in list(chunks)[:3]} == {("Numbers", "MIT", "7")}
    assert chunks["12-2"].metadata == {"year": 1999, "document": "12", "chunk": 2}


def test_the_image_of_a_row_stays_with_its_first_chunk():
    image = Image.new("RGB", (2, 2))
    rows = [{"id": "a", "text": "One is. Two is.", "image": image}, {"id": "b", "image": image}]
    chunks = KnowledgeBase.from_dicts(rows, chunking=Chunking(10))
    assert [(chunk.id, chunk.image is not None) for chunk in chunks] == [("a-0", True), ("a-1", False), ("b", True)]


def test_a_heading_can_stand_above_every_chunk():
    row = {"id": "a", "text": "One is. Two is.", "title": "Wren", "section": "Song"}
    chunks = KnowledgeBase.from_dicts([row, {"id": "b", "text": "Bare."}], chunking=Chunking(10, with_heading=True))
    assert [chunk.text for chunk in chunks] == ["Wren > Song\nOne is.", "Wren > Song\nTwo is.", "Bare."]


def test_a_text_over_the_limit_of_a_passage_is_read_in_chunks(tmp_path):
    (tmp_path / "book.txt").write_text("A sentence of a book. " * 10_000, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"more than the limit.*chunking=Chunking\(\)"):
        KnowledgeBase.from_folder(tmp_path)
    book = KnowledgeBase.from_folder(tmp_path, chunking=Chunking(2000))
    assert len(book) == 112
    assert book["book-0"].source == "book.txt"


def test_faults_and_bad_texts_pass_through_to_be_listed():
    rows = [{"id": "a", "text": 5}, {"text": "no id"}, {"id": "c", "text": "Fine."}]
    read = KnowledgeBase.from_dicts(rows, chunking=Chunking(10), on_error="skip")
    assert read.ids == ["c-0"]
    assert [item.where for item in read.skipped] == ["row 0", "row 1"]
