"""Uploaded files become passages; what strangers pack to do harm, or by mistake, is refused or left out."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest

from hf_ravlm import InvalidInputError, UnsafeInputError
from hf_ravlm.demo.uploads import read_upload, unpack
from tiny import picture


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="PNG")
    return buffer.getvalue()


def packed(folder: Path, **files: bytes | str) -> list[Path]:
    """An archive; in names of files `__` stands for a folder and `_` for a dot."""
    archive = folder / "upload.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return [archive]


def written(folder: Path, **files: bytes | str) -> list[Path]:
    paths = []
    for name, content in files.items():
        paths.append(folder / name)
        paths[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
    return paths


def test_pictures_with_texts_and_texts_alone(tmp_path):
    files = {"birds/robin.png": png(), "birds/robin.txt": "A robin.", "wren.txt": "A wren."}
    others = {"__MACOSX/birds/._robin.png": b"x", "run.sh": "rm -rf /", "birds/.hidden.txt": "x"}
    found = read_upload(packed(tmp_path, **files, **others))
    assert {passage.id: passage.text for passage in found} == {"birds/robin": "A robin.", "wren": "A wren."}
    assert found["birds/robin"].image.size == picture().size
    assert list(tmp_path.iterdir()) == [tmp_path / "upload.zip"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_table_with_pictures_beside_it(tmp_path, kind):
    rows = {"jsonl": '{"text": "A robin.", "image": "robin.png"}\n{"text": "A wren."}\n'}
    rows["csv"] = "text,image\nA robin.,robin.png\nA wren.,\n"
    found = read_upload(written(tmp_path, **{f"birds.{kind}": rows[kind], "robin.png": png()}))
    assert [passage.text for passage in found] == ["A robin.", "A wren."]
    assert [passage.image is not None for passage in found] == [True, False]


def test_metadata_describes_files_and_keeps_licences(tmp_path):
    described = '{"file_name": "robin.png", "text": "A robin.", "licence": "CC0-1.0"}\n'
    found = read_upload(packed(tmp_path, **{"metadata.jsonl": described, "robin.png": png()}))
    assert (found[0].text, found[0].licence) == ("A robin.", "CC0-1.0")


def test_long_texts_are_cut_and_broken_ones_are_told(tmp_path):
    sentence = "The wren sings. "
    files = {"wren.txt": sentence * 200, "robin.png": b"no picture", "latin.txt": "é".encode("latin-1")}
    found = read_upload(packed(tmp_path, **files))
    assert len(found) > 3
    assert max(len(passage.text) for passage in found) <= 1000
    assert sorted(item.where for item in found.skipped) == ["latin.txt", "robin.png"]
    assert all("hf_ravlm_upload_" not in item.reason for item in found.skipped)


@pytest.mark.parametrize("name", ["../robin.png", "/robin.png", "birds/../../robin.png", "C:\\robin.png"])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    with pytest.raises(UnsafeInputError, match="not a safe file name"):
        read_upload(packed(tmp_path, **{"wren.txt": "A wren.", name: png()}))
    assert not list(tmp_path.parent.glob("robin.png"))


def test_a_bomb_is_stopped_by_what_comes_out_of_it(tmp_path):
    (archive,) = packed(tmp_path, **{"wren.txt": b" " * 3_000_000})
    assert archive.stat().st_size < 10_000
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InvalidInputError, match="too much"):
        unpack(archive, out, max_bytes=1_000_000)
    assert (out / "wren.txt").stat().st_size <= 1_000_000
    with pytest.raises(InvalidInputError, match="holds 3 files"):
        unpack(packed(tmp_path, **{f"{name}.txt": "x" for name in "abc"})[0], out, max_files=2)


def test_links_stay_in_the_archive(tmp_path):
    archive = tmp_path / "upload.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        link = zipfile.ZipInfo("secret.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc/passwd")
        opened.writestr("wren.txt", "A wren.")
    assert read_upload([archive]).ids == ["wren"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "There is no file"),
        ({"upload.zip": b"no archive"}, "the archive cannot be read"),
        ({"robin.png": b"no picture"}, "robin.png: the content is not an image"),
        ({"birds.csv": "text\nx\n", "fish.csv": "text\ny\n"}, "There are 2 tables"),
        ({"robin.exe": b"x"}, "of a kind that is not read here"),
        ({"wren.txt": "A wren.", "upload.zip": b"x"}, "came with other files"),
        ({"birds.jsonl": "no JSON\n"}, "birds.jsonl line 1"),
        ({"birds.csv": "colour\nred\n"}, "Neither text nor image was found in birds.csv"),
        ({"birds.jsonl": ""}, "no passage"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path, files, message):
    with pytest.raises((InvalidInputError, UnsafeInputError), match=message) as caught:
        read_upload(written(tmp_path, **files))
    assert "hf_ravlm_upload_" not in str(caught.value)


def test_a_cut_archive_and_too_many_passages(tmp_path):
    (archive,) = packed(tmp_path, **{"wren.txt": os.urandom(5000).hex()})
    whole = archive.read_bytes()
    archive.write_bytes(whole[:200] + whole[1000:])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_upload([archive])
    with pytest.raises(InvalidInputError, match="3 passages, and this page takes 2"):
        read_upload(packed(tmp_path, **{f"{name}.txt": "x" for name in "abc"}), max_passages=2)
