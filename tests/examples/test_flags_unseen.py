"""The pictures in drawing styles that the model never trained on."""

from __future__ import annotations

import pytest
from PIL import Image

from flags.unseen_styles import UNSEEN, unseen_pictures, unseen_sources
from flags.world import VIEWS, load_world


@pytest.fixture(scope="module")
def world():
    return load_world()


def test_every_dev_country_in_every_style_and_no_other(world):
    """A country that was trained on, or is held out, would make the demonstration a lie."""
    keys = [(entity, style) for entity, style, _ in unseen_pictures()]
    assert len(keys) == len(set(keys)) == 120
    assert set(keys) == {(entity, style) for entity in world.dev for style in unseen_sources()}


def test_styles_are_none_of_training():
    assert not set(unseen_sources()) & set(VIEWS)


def test_every_style_has_a_licence():
    free = {"MIT", "CC-BY-4.0", "OFL-1.1"}
    page = (UNSEEN / "README.md").read_text(encoding="utf-8")
    for style, row in unseen_sources().items():
        assert row["licence"] in free
        assert all(row[key] for key in ("source", "author", "version", "url", "notice", "package"))
        assert all(word in page for word in (f"`{style}`", row["author"], row["version"], row["licence"], row["url"]))


def test_pictures_open_in_colour_on_white_and_are_small():
    for _, _, path in unseen_pictures():
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.mode == "P"  # RGB colours in a palette
            assert picture.palette.mode == "RGB"
            assert "transparency" not in picture.info
            assert max(picture.size) == 256
            pixels = picture.convert("RGB")
        assert pixels.getpixel((0, 0)) == (255, 255, 255)
        assert len(pixels.getcolors(1 << 16)) >= 3, path.name
    assert sum(path.stat().st_size for path in UNSEEN.iterdir()) < 700_000


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_unseen"):
        unseen_pictures(tmp_path)
