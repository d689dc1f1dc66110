from __future__ import annotations

import os

import pytest

from hf_ravlm.errors import UnsafeInputError
from hf_ravlm.saving.safe_paths import resolve_inside, safe_relpath


@pytest.mark.parametrize("name", ["a.png", "a/b/c.png", "a..b.png", "..a", "a b/ü.png", "./a.png", "a//b"])
def test_names_inside_are_allowed(name):
    assert not os.path.isabs(safe_relpath(name))


@pytest.mark.parametrize(
    "name",
    ["", ".", "/", "./", "..", "../a", "a/../b", "a/..", "a\\..\\b", "/etc/passwd", "\\\\host\\share\\a", "\\a", "C:a"]
    + ["C:/a", "c:\\a", "a/C:/b", "a\0.png", "a" * 256, "//host/share"],
)
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(UnsafeInputError, match="not a safe file name"):
        safe_relpath(name)


def test_backslashes_become_slashes():
    assert safe_relpath("birds\\robin.jpg") == "birds/robin.jpg"


def test_a_link_may_stay_inside_but_not_lead_out(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "real.txt").write_text("text")
    (folder / "inside.txt").symlink_to("real.txt")
    (folder / "outside.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "parent").symlink_to(tmp_path)
    assert resolve_inside(folder, "inside.txt").read_text() == "text"
    for name in ("outside.txt", "parent/secret.txt"):
        with pytest.raises(UnsafeInputError, match="leads out of the folder"):
            resolve_inside(folder, name)


def test_links_of_a_hub_snapshot_to_its_blobs_are_allowed(tmp_path):
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    (snapshot / "images").mkdir(parents=True)
    (blobs / "1234").write_text("text")
    (tmp_path / "secret.txt").write_text("secret")
    (snapshot / "images" / "a.txt").symlink_to(blobs / "1234")
    (snapshot / "images" / "b.txt").symlink_to(tmp_path / "secret.txt")
    assert resolve_inside(snapshot, "images/a.txt").read_text() == "text"
    assert resolve_inside(snapshot / "images", "a.txt").read_text() == "text"
    with pytest.raises(UnsafeInputError):
        resolve_inside(snapshot, "images/b.txt")
