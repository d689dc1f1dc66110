"""Pipes, devices, folders and loops of links where a file is expected: refused at once, wherever it is named."""

from __future__ import annotations

import os

import pytest

from hf_ravlm.errors import InvalidInputError, KnowledgeBaseCorruptError, UnsafeInputError
from hf_ravlm.evaluation.questions import _image_bytes as image_digest_input
from hf_ravlm.files import other_than_file
from hf_ravlm.retrieval import KnowledgeBase
from hf_ravlm.retrieval.store.versions import read_version
from hf_ravlm.saving.safe_paths import resolve_inside


pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and links are a POSIX matter")


@pytest.fixture
def strange(tmp_path):
    """Name of a kind -> something of that kind, under a name that ends as it is asked."""

    def make(kind: str, suffix: str = ""):
        path = tmp_path / f"strange{suffix}"
        if kind == "a named pipe":
            os.mkfifo(path)
        elif kind == "a loop of links":
            path.symlink_to(tmp_path / "other")
            (tmp_path / "other").symlink_to(path)
        elif kind == "a folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        return path

    return make


KINDS = pytest.mark.parametrize("kind", ["a named pipe", "a loop of links", "a folder", "a device"])


@KINDS
def test_what_it_is_is_told(strange, kind):
    assert other_than_file(strange(kind)) == kind


def test_files_and_what_is_missing_are_opened(tmp_path):
    (tmp_path / "file").touch()
    assert [other_than_file(tmp_path / name) for name in ("file", "missing")] == [None, None]
    assert other_than_file("nul\0") is None


@KINDS
@pytest.mark.parametrize("read", ["jsonl", "csv", "parquet"])
def test_tables(strange, kind, read):
    with pytest.raises(InvalidInputError, match=f"this is {kind}, and a file was expected"):
        getattr(KnowledgeBase, f"from_{read}")(strange(kind, f".{read}"))


@KINDS
@pytest.mark.parametrize("name", ["CURRENT", "gen-00000001.json"])
def test_manifests(strange, kind, name, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "CURRENT").write_text("gen-00000001 " + "0" * 64)
    (store / name).unlink(missing_ok=True)
    (store / name).symlink_to(strange(kind))
    with pytest.raises((KnowledgeBaseCorruptError, UnsafeInputError)):
        read_version(store)


def test_links_inside_a_folder(strange, tmp_path):
    strange("a loop of links")
    with pytest.raises(UnsafeInputError, match="loop of links"):
        resolve_inside(tmp_path, "strange")


def test_images_of_questions(strange):
    assert image_digest_input(str(strange("a named pipe"))) == b""
