"""Folders as people keep them: suffixes, spellings, several captions, metadata of any kind, and what is no passage."""

from __future__ import annotations

import json
import os
import sys
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_ravlm import KnowledgeBase
from hf_ravlm.errors import InvalidInputError


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), "red").save(path)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("robin.TXT", "A robin.", "A robin."),
        ("robin.md", "A robin.", "A robin."),
        ("robin.Caption", "A robin.", "A robin."),
        ("robin.json", '{"Caption": "A robin.", "title": "Robin", "year": 3}', "A robin."),
        ("robin.txt", "\ufeffA robin.", "A robin."),
        ("robin.txt", "A robin.".encode("utf-16"), "A robin."),
        ("robin.txt", "One.\nTwo.\n", "One.\nTwo."),
    ],
)
def test_the_text_beside_an_image_is_found(tmp_path, name, content, text):
    save_image(tmp_path / "robin.JPG")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    knowledge_base = KnowledgeBase.from_folder(tmp_path)
    assert knowledge_base.ids == ["robin"]
    assert knowledge_base[0].text == text
    assert knowledge_base.skipped == []
    if name.endswith("json"):
        assert (knowledge_base[0].title, knowledge_base[0].metadata) == ("Robin", {"year": 3})


def test_names_in_other_unicode_forms_belong_together(tmp_path):
    composed, parted = "Möwe", unicodedata.normalize("NFD", "Möwe")
    save_image(tmp_path / f"{parted}.png")
    (tmp_path / f"{composed}.txt").write_text("A gull.")
    save_image(tmp_path / "über.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{unicodedata.normalize('NFD', 'über')}.png,Over.\n")
    knowledge_base = KnowledgeBase.from_folder(tmp_path)
    assert {passage.id: passage.text for passage in knowledge_base} == {"Möwe": "A gull.", "über": "Over."}
    assert all(passage.image for passage in knowledge_base)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "CSV"])
def test_all_captions_of_a_file_are_kept(tmp_path, kind):
    save_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("Beside.")
    rows = [{"File_Name": "a.png", "caption": text, "by": who} for text, who in (("One.", "x"), ("Two.", "y"))]
    path = tmp_path / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "\t" if kind == "tsv" else ","
        path.write_text(
            "\n".join(mark.join(row) for row in [["file_name", "caption", "by"], *(r.values() for r in rows)])
        )
    passage = KnowledgeBase.from_folder(tmp_path)[0]
    assert passage.text == "Beside.\nOne.\nTwo."
    assert passage.metadata == {"by": ["x", "y"]}


def test_two_titles_of_one_file_are_refused(tmp_path):
    save_image(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text,title\na.png,t,One\na.png,t,Two\n")
    with pytest.raises(InvalidInputError, match="metadata.csv line 3 gives title='Two'.*title='One'"):
        KnowledgeBase.from_folder(tmp_path)


@pytest.mark.parametrize("suffix", ["avif", "jp2", "webp", "gif", "bmp", "tif", "jfif"])
def test_formats_of_images(tmp_path, suffix):
    kind = {"jfif": "JPEG"}.get(suffix)
    try:
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"a.{suffix}", format=kind)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow writes no {suffix}")
    assert KnowledgeBase.from_folder(tmp_path)[0].image.size == (16, 16)


def test_what_is_no_passage_is_counted_and_named_once(tmp_path, caplog):
    save_image(tmp_path / "a.png")
    for name in ("a.docx", "b.docx", "c.svg", ".DS_Store", ".git/config", "notes", "alone.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    knowledge_base = KnowledgeBase.from_folder(tmp_path)
    assert knowledge_base.ids == ["a"]
    reasons = " ".join(item.reason for item in knowledge_base.skipped)
    for part in (
        "2 hidden",
        "'.DS_Store'",
        "2 files of the kind .docx",
        "'a.docx'",
        ".svg",
        "Export them as PNG",
        "without a suffix",
        ".json",
    ):
        assert part in reasons
    assert "'elsewhere' is a link to a folder" in reasons
    assert len(knowledge_base.skipped) == 6
    assert len(caplog.records) == 1


def test_links_may_lead_into_an_allowed_folder(tmp_path):
    save_image(tmp_path / "photos" / "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").symlink_to(tmp_path / "photos" / "a.png")
    (tmp_path / "data" / "a.txt").write_text("An a.")
    assert KnowledgeBase.from_folder(tmp_path / "data", on_error="keep_text").table["image"].null_count == 1
    assert KnowledgeBase.from_folder(tmp_path / "data", image_root=tmp_path / "photos")[0].image is not None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_a_name_that_is_no_text_is_named(tmp_path):
    save_image(tmp_path / "a.png")
    with open(os.fsencode(tmp_path) + b"/b\xff.txt", "w") as file:
        file.write("words")
    knowledge_base = KnowledgeBase.from_folder(tmp_path, on_error="skip")
    assert knowledge_base.ids == ["a"]
    assert "half of a character pair" in knowledge_base.skipped[0].reason
    with pytest.raises(InvalidInputError, match="half of a character pair"):
        KnowledgeBase.from_folder(tmp_path)
