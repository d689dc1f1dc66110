"""PDF files: words with page and box, pages and figures as images, and files that cannot be read."""

from __future__ import annotations

import sys

import pytest

from hash_encoder import HashEncoder
from hf_ravlm import InvalidInputError, KnowledgeBase, RavlmRetriever
from hf_ravlm.retrieval import Chunking
from hf_ravlm.retrieval.sources.pdf import document
from hf_ravlm.retrieval.sources.pdf.document import Line
from hf_ravlm.retrieval.sources.pdf.layout import joined_lines, sections_of, without_running_heads


pytest.importorskip("reportlab", reason='pip install "hf_ravlm[test]"')
from pdf_files import CARE, POWER, TITLE, manual, scan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("manuals")
    manual(root / "kettle.pdf")
    (root / "old").mkdir()
    scan(root / "old" / "a scan.pdf")
    return root


@pytest.fixture(scope="module")
def base(folder):
    return KnowledgeBase.from_pdf(folder / "kettle.pdf")


def test_words_pages_and_figures_are_passages_that_open_at_their_page(base):
    assert base.ids == [
        *("kettle.pdf#page=1-0", "kettle.pdf#page=1", "kettle.pdf#page=1-figure-0"),
        *("kettle.pdf#page=2-0", "kettle.pdf#page=2", "kettle.pdf#page=3"),
    ]
    care = base["kettle.pdf#page=2-0"]
    assert care.text == f"{TITLE} > 2 Care and cleaning\n{CARE}"
    assert (care.source, care.url, care.title) == ("kettle.pdf", "kettle.pdf#page=2", TITLE)
    assert care.metadata["page"] == 2
    assert care.metadata["section"] == "2 Care and cleaning"
    assert care.metadata["document"] == "kettle.pdf#page=2"
    assert [passage.metadata["kind"] for passage in base][:3] == ["text", "page", "figure"]
    assert base["kettle.pdf#page=1"].text == f"{TITLE}, page 1\n1 Power"


def test_the_box_holds_the_words(base):
    left, top, right, bottom = base["kettle.pdf#page=2-0"].metadata["box"]
    width, height = 595.28, 841.89  # A4, in points; the heading stands 760 points above the lower edge
    assert left == pytest.approx(60 / width, abs=0.01)
    assert top == pytest.approx(1 - 772 / height, abs=0.01)
    assert bottom == pytest.approx(1 - (730 - 13) / height, abs=0.01)
    assert 0.4 < right < 0.95


def test_a_page_is_drawn_upright_and_a_figure_is_cut_out_of_it(base):
    page = base["kettle.pdf#page=3"].image
    assert page.width * page.height == pytest.approx(1_000_000, rel=0.01)
    assert page.getpixel((page.width // 2, page.height // 2))[:2] == pytest.approx((255, 0), abs=8)
    assert page.getpixel((5, 5)) == (255, 255, 255)
    figure = base["kettle.pdf#page=1-figure-0"]
    assert figure.text == "Figure 1: The base with its lamp."
    assert figure.image.width / figure.image.height == pytest.approx(1.5, abs=0.02)
    assert figure.image.getpixel((9, 9))[2] == pytest.approx(255, abs=8)


def test_running_heads_are_left_out_where_they_repeat():
    body = [Line(f"Words of page {number}.", (0.1, 0.4, 0.9, 0.42)) for number in range(3)]
    pages = [[Line(f"A Manual {n}", (0.1, 0.02, 0.9, 0.04)), line] for n, line in enumerate(body)]
    assert without_running_heads(pages) == [[line] for line in body]
    contents = Line("3.1 Care . . . . . . . . . 27", (0.1, 0.4, 0.9, 0.42))
    assert without_running_heads([[contents]]) == [[]]


def test_headings_are_found_by_their_letters_where_there_is_no_outline(tmp_path):
    base = KnowledgeBase.from_pdf(manual(tmp_path / "plain.pdf", outline=False), pages="text")
    assert [passage.metadata["section"] for passage in base] == ["1 Power", "2 Care and cleaning"]
    rows = [("Kettles", 20), ("Care", 14), ("Rinse it.", 10), ("Power", 14), ("Plug it into the wall.", 10)]
    lines = [Line(text, (0.1, 0.1 * n, 0.5, 0.1 * n + 0.02), size) for n, (text, size) in enumerate(rows)]
    (sections,) = sections_of([lines], [])
    assert [section.path for section in sections] == [("Kettles",), ("Kettles", "Care"), ("Kettles", "Power")]


def test_lines_become_paragraphs_and_words_cut_in_two_are_whole(tmp_path):
    rows = [("The kettle is des", 0.9), ("caled with vinegar.", 0.4), ("It takes an hour.", 0.4)]
    lines = [Line(text, (0.1, 0.1 + 0.02 * n, right, 0.115 + 0.02 * n)) for n, (text, right) in enumerate(rows)]
    lines[0] = lines[0]._replace(text="The kettle is des" + document.SOFT_HYPHEN)
    assert joined_lines(lines)[0] == "The kettle is descaled with vinegar.\nIt takes an hour."
    below = Line("Another paragraph.", (0.1, 0.5, 0.9, 0.515))
    assert joined_lines([lines[1], below])[0] == "caled with vinegar.\n\nAnother paragraph."


def test_long_text_is_cut_and_every_piece_has_its_own_box(folder):
    base = KnowledgeBase.from_pdf(folder / "kettle.pdf", pages="text", chunking=Chunking(60))
    first, second = (base[f"kettle.pdf#page=1-{number}"] for number in (0, 1))
    assert first.text.startswith("1 Power")  # a heading is words as all others where pieces carry none
    assert second.text in POWER
    assert first.metadata["box"][3] <= second.metadata["box"][3]
    assert first.metadata["box"] != second.metadata["box"]


@pytest.mark.parametrize(("pages", "kinds"), [("text", {"text"}), ("image", {"page", "figure"})])
def test_words_or_images_alone(folder, pages, kinds):
    base = KnowledgeBase.from_pdf(folder / "kettle.pdf", pages=pages)
    assert {passage.metadata["kind"] for passage in base} == kinds
    assert all((passage.image is None) == (pages == "text") for passage in base)
    with pytest.raises(InvalidInputError, match='"both", "text" or "image"'):
        KnowledgeBase.from_pdf(folder, pages="words")


def test_a_folder_of_pdf_files_among_images_and_texts(folder, tmp_path):
    assert "old/a scan.pdf#page=1" in KnowledgeBase.from_pdf(folder)
    scan(tmp_path / "s.pdf")
    manual(tmp_path / "kettle.PDF")
    (tmp_path / "note.txt").write_text("The kettle is blue. It is old.")
    (tmp_path / "metadata.csv").write_text("file_name,licence,shelf\nkettle.PDF,CC0-1.0,7\n")
    base = KnowledgeBase.from_folder(tmp_path, chunking=Chunking(20))
    assert base["note-0"].text == "The kettle is blue."
    assert base["s.pdf#page=1"].image is not None
    care = base["kettle.PDF#page=2-0"]
    assert (care.licence, care.metadata["shelf"], care.metadata["page"]) == ("CC0-1.0", "7", 2)
    assert base.skipped == []


def test_scans_are_found_by_image_and_words_by_words(folder):
    retriever = RavlmRetriever.build(KnowledgeBase.from_pdf(folder), HashEncoder())
    scanned = retriever.knowledge_base["old/a scan.pdf#page=1"]
    assert scanned.url == "old/a%20scan.pdf#page=1"
    assert retriever.retrieve(scanned.image, scanned.text, k=1)[0][0].id == scanned.id
    found = retriever.retrieve(None, ["descale with vinegar"], k=1, channels=["bm25"])[0][0]
    assert found.id == "kettle.pdf#page=2-0"


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        scan(tmp_path / name / "m.pdf")
    assert KnowledgeBase.from_pdf([tmp_path / "a" / "m.pdf", tmp_path / "b" / "m.pdf"]).ids == [
        "a/m.pdf#page=1",
        "b/m.pdf#page=1",
    ]


def test_encrypted_and_damaged_files_are_refused_or_left_out_by_name(folder, tmp_path):
    manual(tmp_path / "secret.pdf", encrypt="password")
    (tmp_path / "torn.pdf").write_bytes((folder / "kettle.pdf").read_bytes()[:200])
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "page.pdf").write_text("<html>Not found</html>")
    for name, words in [("secret", "encrypted"), ("torn", "no sound PDF"), ("empty", "PDF"), ("page", "no sound PDF")]:
        with pytest.raises(InvalidInputError, match=rf"{name}\.pdf.*{words}"):
            KnowledgeBase.from_pdf(tmp_path / f"{name}.pdf")
    scan(tmp_path / "sound.pdf")
    base = KnowledgeBase.from_folder(tmp_path, on_error="skip")
    assert base.ids == ["sound.pdf#page=1"]
    assert sorted(item.where for item in base.skipped) == ["empty.pdf", "page.pdf", "secret.pdf", "torn.pdf"]
    with pytest.raises(InvalidInputError, match="no such file"):
        KnowledgeBase.from_pdf(tmp_path / "missing.pdf")
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidInputError, match="no PDF file in this folder"):
        KnowledgeBase.from_pdf(tmp_path / "none")


def test_a_page_over_a_limit_is_named_and_the_others_stay(folder, monkeypatch):
    monkeypatch.setattr(document, "SECONDS_PER_PAGE", -1.0)
    slow = KnowledgeBase.from_pdf(folder / "kettle.pdf", on_error="skip")
    assert {passage.metadata["kind"] for passage in slow} == {"text"}
    assert [item.where for item in slow.skipped] == [f"kettle.pdf page {number}" for number in (1, 2, 3)]
    monkeypatch.undo()
    monkeypatch.setattr(document, "MAX_PIXELS", 100)
    with pytest.raises(InvalidInputError, match=r"kettle\.pdf page 1 holds an image of 60 x 40 pixels"):
        KnowledgeBase.from_pdf(folder / "kettle.pdf")
    monkeypatch.setattr(document, "MAX_CHARACTERS", 155)
    left = KnowledgeBase.from_pdf(folder / "kettle.pdf", pages="text", on_error="skip")
    assert {passage.metadata["page"] for passage in left} == {2}
    assert [item.where for item in left.skipped] == ["kettle.pdf page 1", "kettle.pdf page 3"]
    monkeypatch.setattr(document, "MAX_PAGES", 2)
    with pytest.raises(InvalidInputError, match="3 pages"):
        KnowledgeBase.from_pdf(folder / "kettle.pdf")


def test_blank_pages_are_told(tmp_path):
    from reportlab.pdfgen.canvas import Canvas

    page = Canvas(str(tmp_path / "b.pdf"))
    page.drawString(100, 700, "Some words.")
    page.showPage()
    page.showPage()
    page.save()
    base = KnowledgeBase.from_pdf(tmp_path / "b.pdf")
    assert base.ids == ["b.pdf#page=1-0", "b.pdf#page=1"]
    assert [item.where for item in base.skipped] == ["b.pdf page 2"]


def test_a_rotated_page_has_its_boxes_where_they_are_seen(tmp_path):
    from pypdfium2 import PdfDocument
    from reportlab.pdfgen.canvas import Canvas

    page = Canvas(str(tmp_path / "upright.pdf"), pagesize=(600, 800))
    page.drawString(50, 750, "At the upper left before it is turned.")
    page.save()
    with PdfDocument(tmp_path / "upright.pdf") as opened:
        opened[0].set_rotation(90)
        opened.save(tmp_path / "r.pdf")
    (tmp_path / "upright.pdf").unlink()
    words, image = KnowledgeBase.from_pdf(tmp_path / "r.pdf")
    assert image.image.width > image.image.height
    left, top, right, bottom = words.metadata["box"]
    assert left > 0.9
    assert bottom - top > right - left  # the words run downward
    shown = image.image.crop(
        [int(side * size) for side, size in zip((left, top, right, bottom), (*image.image.size,) * 2)]
    )
    assert shown.convert("L").getextrema()[0] < 100


def test_without_the_library_a_folder_tells_and_a_file_is_refused(folder, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(InvalidInputError, match=r"hf_ravlm\[pdf\]"):
        KnowledgeBase.from_pdf(folder)
    scan(tmp_path / "s.pdf")
    (tmp_path / "note.txt").write_text("A note.")
    base = KnowledgeBase.from_folder(tmp_path)
    assert base.ids == ["note"]
    assert "hf_ravlm[pdf]" in base.skipped[0].reason


def test_every_passage_has_words_for_encoders_of_words_alone(folder):
    base = KnowledgeBase.from_pdf(folder)
    assert base["old/a scan.pdf#page=1"].text == "a scan, page 1"
    assert all(passage.text for passage in base)
