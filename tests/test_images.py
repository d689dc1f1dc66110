from __future__ import annotations

import base64
import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hf_ravlm.errors import UnsafeInputError
from hf_ravlm.images import detailed_crops, encoded_image, safe_image, trim_margins
from hf_ravlm.images.headers import MAX_DIRECTORY_BYTES, MAX_SCANS, first_image


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def photo(width: int = 16, height: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width: int, height: int, depth: int = 1, colour_type: int = 0) -> bytes:
    """A PNG of any size whose pixels take a few bytes: what a decompression bomb looks like."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_allowed_format_opens_from_path_bytes_and_dictionary(tmp_path, image_format):
    data = encoded(photo(), image_format)
    path = tmp_path / "image"
    path.write_bytes(data)
    sources = [path, str(path), data, {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    images = [safe_image(source) for source in sources]
    assert all(image.mode == "RGB" and image.size == (16, 12) for image in images)
    assert len({image.tobytes() for image in images}) == 1


def test_a_lossless_image_keeps_its_pixels():
    assert safe_image(encoded(photo())).tobytes() == photo().tobytes()
    assert safe_image(np.asarray(photo())).tobytes() == photo().tobytes()


@pytest.mark.parametrize("image_format", ["PPM", "ICO", "PCX", "TGA"])
def test_other_formats_are_refused(image_format):
    with pytest.raises(UnsafeInputError, match="JPEG, PNG"):
        safe_image(encoded(photo(), image_format))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnsafeInputError, match="no-such.jpg: there is no such file"):
        safe_image(tmp_path / "no-such.jpg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><p>404</p>", "not an image in one of the formats"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image in one of the formats"),
        (encoded(photo(200, 200), "JPEG")[:900], "broken or incomplete"),
        (encoded(photo(200, 200), "PNG")[:5000], "broken or incomplete"),
        (encoded(photo(), "PNG")[:20], "bad.jpg"),
    ],
    ids=["empty", "html", "svg", "cut-jpeg", "cut-png", "cut-header"],
)
def test_a_broken_file_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(UnsafeInputError, match=message) as caught:
        safe_image(tmp_path / "bad.jpg")
    assert "bad.jpg" in str(caught.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UnsafeInputError, match="regular file"):
        safe_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are a POSIX matter")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnsafeInputError, match="regular file"):
        safe_image(tmp_path / "pipe.png")


def test_an_image_may_come_as_text():
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), "lime").save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    image = safe_image(f"data:image/png;base64,{text}")
    assert (image.size, image.getpixel((0, 0))) == ((5, 3), (0, 255, 0))
    lines = "\r\n".join(text[start : start + 20] for start in range(0, len(text), 20))
    assert safe_image(f"data:image/png;base64,{lines}\n").size == (5, 3)
    refused = {
        f"data:image/png;base64,{text[:-2]}?!": "cannot be decoded",
        f"data:image/png,{text}": "expected data:image/png;base64",
        "data:image/png;base64,AAAA": "not an image",
        "data:image/png;base64,": "0 bytes",
    }
    for source, reason in refused.items():
        with pytest.raises(UnsafeInputError, match=reason):
            safe_image(source)
    with pytest.raises(UnsafeInputError, match="more than the limit"):
        safe_image(f"data:image/png;base64,{text}", max_bytes=50)


@pytest.mark.parametrize("url", ["https://example.org/a.png", "s3://bucket/a.png", "data:text/plain;base64,AAAA"])
def test_a_url_is_never_fetched(url):
    with pytest.raises(UnsafeInputError, match="Download the image"):
        safe_image(url)


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (8000, 1, "50 times the other"),
        (1, 8000, "50 times the other"),
        (20_000, 10_000, "50,000,000"),
        (8_000, 7_000, "56,000,000 pixels, more than the limit of 50,000,000"),
        (30_000, 1_000, "longest side allowed is 20,000"),
    ],
)
def test_a_bomb_is_refused_before_a_pixel_is_decoded(width, height, message, monkeypatch):
    def decode(*_):
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(UnsafeInputError, match=message):
        safe_image(png_header(width, height))


def test_limits_are_arguments_and_named_in_the_message():
    data = encoded(photo(16, 12))
    for limits in ({"max_bytes": 20}, {"max_pixels": 100}, {"max_side": 15}, {"max_aspect": 1.2}):
        with pytest.raises(UnsafeInputError, match=f"`{next(iter(limits))}`"):
            safe_image(data, **limits)
    assert safe_image(data, max_bytes=len(data), max_pixels=192, max_side=16, max_aspect=2).size == (16, 12)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_levels(image_format):
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    image = safe_image(encoded(Image.fromarray(levels), image_format))
    grey = np.asarray(image)[:, :, 0]
    assert len(np.unique(grey)) == 64
    np.testing.assert_array_equal(grey, np.rint(levels / 257))


def test_wide_integer_and_float_images_are_scaled():
    wide = Image.fromarray(np.array([[0, 32768, 65535]], np.int32))
    assert np.asarray(safe_image(wide))[0, :, 0].tolist() == [0, 128, 255]
    eight_bit = Image.fromarray(np.array([[0, 128, 255]], np.int32))
    assert np.asarray(safe_image(eight_bit))[0, :, 0].tolist() == [0, 128, 255]
    for values in ([0.0, 0.5, 1.0], [0.0, 128.0, 255.0]):
        floats = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
        assert np.asarray(safe_image(floats))[0, :, 0].tolist() == [0, 128, 255]
    for values in ([0.0, np.nan], [0.0, np.inf], [-1.0, 0.5], [0.0, 300.0]):
        with pytest.raises(UnsafeInputError):
            safe_image(Image.fromarray(np.array([values], np.float32)))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("image_format", ["PNG", "TIFF", None])
def test_sixteen_bits_that_hold_fewer_are_not_black(bits, image_format):
    levels = np.array([[0, 2 ** (bits - 1), 2**bits - 1]], np.uint16)
    source = levels if image_format is None else encoded(Image.fromarray(levels), image_format)
    assert np.asarray(safe_image(source))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("highest", [1.0, 1.5, 4.0, 255.0])
def test_light_beyond_white_is_not_black(highest):
    floats = encoded(Image.fromarray(np.array([[0, highest / 2, highest]], np.float32)), "TIFF")
    assert np.asarray(safe_image(floats))[0, :, 0].tolist() == [0, 128, 255]


def test_transparency_is_composited_on_white():
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    rgba.putpixel((0, 0), (0, 0, 255, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 128))
    image = safe_image(encoded(rgba))
    assert image.getpixel((0, 0)) == (0, 0, 255)
    assert image.getpixel((1, 0)) == pytest.approx((127, 127, 127), abs=1)
    assert image.getpixel((3, 3)) == (255, 255, 255)
    assert safe_image(encoded(Image.new("LA", (4, 4), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour_becomes_white():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((0, 0), 0)
    image = safe_image(encoded(palette, "PNG", transparency=1))
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert image.getpixel((2, 2)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_colour_modes_become_rgb(mode):
    image = Image.new("RGB", (6, 4), "white").convert(mode)
    image_format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    opened = safe_image(encoded(image, image_format))
    assert opened.mode == "RGB"
    assert opened.getpixel((3, 2)) == pytest.approx((255, 255, 255), abs=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation):
    upright = Image.new("RGB", (16, 8), "white")
    upright.paste("red", (0, 0, 8, 4))  # the upper left quarter
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = safe_image(encoded(stored, "PNG", exif=exif))
    assert image.tobytes() == upright.tobytes()
    assert safe_image(image).tobytes() == upright.tobytes()
    assert safe_image(encoded_image(image)).tobytes() == upright.tobytes()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_exif_does_not_lose_the_image():
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert safe_image(data).size == (16, 12)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(image_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert safe_image(data).getpixel((4, 4)) == (255, 0, 0)


def test_float_arrays_are_scaled_and_nan_is_refused():
    array = np.linspace(0, 1, 8 * 8 * 3).reshape(8, 8, 3)
    expected = np.rint(array * 255).astype(np.uint8)
    for dtype in (np.float16, np.float32, np.float64):
        result = np.asarray(safe_image(array.astype(dtype))).astype(int)
        assert np.abs(result - expected).max() <= (1 if dtype == np.float16 else 0)
    array[3, 3, 1] = np.nan
    with pytest.raises(UnsafeInputError, match="NaN"):
        safe_image(array)
    with pytest.raises(UnsafeInputError, match=r"0 to 255.*astype\(numpy.uint8\)"):
        safe_image(expected.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), "transpose"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"\(2, 8, 8, 3\)"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros((8000, 1), np.uint8), "50 times"),
        (np.full((2, 2), -0.5), "-0.5"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(array, message):
    with pytest.raises(UnsafeInputError, match=message):
        safe_image(array)


def test_arrays_of_all_documented_shapes_open():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert safe_image(grey).tobytes() == safe_image(grey[:, :, None]).tobytes()
    assert len(np.unique(np.asarray(safe_image(grey.astype(np.uint16) * 1024)))) == 64
    rgba = np.zeros((4, 4, 4), np.uint8)
    assert safe_image(rgba).getpixel((0, 0)) == (255, 255, 255)
    assert safe_image(np.asfortranarray(photo())[::-1]).size == (16, 12)


@pytest.mark.parametrize("source", [None, 5, [], object(), {"url": "x"}, {"bytes": None, "path": None}])
def test_anything_else_is_refused_with_what_was_expected(source):
    with pytest.raises(UnsafeInputError, match="path"):
        safe_image(source)


def test_a_plain_rgb_image_is_not_copied_and_a_lazy_one_is_loaded(tmp_path):
    plain = photo()
    assert safe_image(plain) is plain
    plain.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as lazy:
        image = safe_image(lazy)
    assert image.tobytes() == plain.tobytes()


def test_encoded_images_keep_their_bytes_and_images_are_stored_without_loss(tmp_path):
    data = encoded(photo(), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    assert encoded_image(data) == encoded_image(tmp_path / "a.jpg") == encoded_image({"bytes": data}) == data
    assert safe_image(encoded_image(photo())).tobytes() == photo().tobytes()
    with pytest.raises(UnsafeInputError):
        encoded_image(data[:200])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_mutated_files_open_or_raise_one_class_of_error():
    random = np.random.default_rng(0)
    originals = [encoded(photo(), image_format) for image_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    for case in range(400):
        data = bytearray(originals[case % len(originals)])
        for _ in range(int(random.integers(1, 6))):
            data[int(random.integers(len(data) if case % 2 else min(64, len(data))))] = int(random.integers(256))
        try:
            image = safe_image(bytes(data))
        except UnsafeInputError:
            continue
        assert image.mode == "RGB"
        assert image.width * image.height <= 50_000_000


def test_paths_may_be_any_path_like(tmp_path):
    path = Path(tmp_path) / "ünïcode name.png"
    photo().save(path)
    assert safe_image(path).size == (16, 12)


def icon(drawing: tuple[int, int, int, int], size: tuple[int, int] = (72, 72), colour="navy") -> Image.Image:
    """A white image with a box of one colour."""
    image = Image.new("RGB", size, "white")
    image.paste(colour, drawing)
    return image


def test_a_framed_icon_is_cut_to_its_frame():
    framed = icon((4, 16, 68, 56), colour="black")
    framed.paste("white", (6, 18, 66, 54))  # a white flag with a black frame
    framed.paste("red", (6, 18, 66, 30))
    trimmed = trim_margins(framed)
    assert trimmed.tobytes() == framed.crop((4, 16, 68, 56)).tobytes()
    assert trim_margins(trimmed) is trimmed
    assert trim_margins(framed.convert("L").convert("P")).size == (64, 40)


@pytest.mark.parametrize("margin", [(0, 1), (5, 0), (20, 5)])
def test_margins_of_any_depth_are_cut(margin):
    x, y = margin
    assert trim_margins(icon((x, y, 120 - x, 80 - y), size=(120, 80))).size == (120 - 2 * x, 80 - 2 * y)


def test_tight_images_with_white_edges_are_left_alone():
    japan = Image.new("RGB", (90, 60), "white")
    ImageDraw.Draw(japan).ellipse((27, 12, 63, 48), fill="red")
    poland = icon((0, 30, 90, 60), (90, 60), "red")
    sideways = icon((45, 0, 90, 60), (90, 60), "red")
    for image in (japan, poland, sideways, photo()):
        assert trim_margins(image) is image


@pytest.mark.parametrize(
    "drawing",
    [
        (4, 4, 54, 44),  # in a corner
        (8, 16, 72, 56),  # more to the right
        (26, 28, 46, 44),  # small
        (30, 4, 42, 68),  # high
        (2, 28, 70, 44),  # too low for its width
    ],
)
def test_what_is_no_whole_drawing_in_the_middle_is_left_alone(drawing):
    image = icon(drawing)
    assert trim_margins(image) is image


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 50), (50, 1), (3000, 2)])
def test_tiny_and_extreme_images_do_not_break_trimming(size):
    for colour in ("white", "black", (248, 248, 248), (247, 255, 255)):
        image = Image.new("RGB", size, colour)
        assert trim_margins(image) is image
    dotted = Image.new("RGB", size, "white")
    dotted.putpixel((size[0] // 2, size[1] // 2), (0, 0, 0))
    assert trim_margins(dotted).mode == "RGB"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def after_header(png: bytes, *chunks: bytes) -> bytes:
    return b"".join([png[:33], *chunks, png[33:]])


def exif_of(entries: int, size: int = 0, orientation: int = 6) -> bytes:
    """An Exif block of many entries that all point at the same `size` bytes."""
    head = b"MM\0*\0\0\0\x08" + struct.pack(">H", entries + 1)
    head += struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    table = b"".join(struct.pack(">HHII", 0x9000 + entry % 500, 7, size, 8) for entry in range(entries))
    return head + table + bytes(4 + size)


@pytest.fixture
def no_metadata(monkeypatch):
    """Fails where a decoder unfolds Exif."""

    def unfold(*_):
        raise AssertionError("Exif was unfolded")

    monkeypatch.setattr("PIL.Image.Exif.load", unfold)


def test_exif_is_never_unfolded_and_still_turns_the_image(no_metadata):
    exif = exif_of(65_000, 1_000_000)
    bombs = [after_header(encoded(photo()), chunk(b"eXIf", exif))]
    small = exif_of(3_000, 20_000)
    jpeg = encoded(photo(), "JPEG")
    bombs += [jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(small) + 8) + b"Exif\0\0" + small + jpeg[2:]]
    bombs += [encoded(photo(), "WEBP", exif=b"Exif\0\0" + exif)]
    for bomb in bombs:
        assert safe_image(bomb).size == (12, 16)
        assert safe_image(safe_image(bomb)).size == (12, 16)


def test_xmp_turns_an_image_that_has_no_exif():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    jpeg, name = encoded(photo(), "JPEG"), b"http://ns.adobe.com/xap/1.0/\0"
    assert safe_image(
        jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(name + xmp) + 2) + name + xmp + jpeg[2:]
    ).size == (
        12,
        16,
    )
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    assert safe_image(after_header(encoded(photo()), text)).size == (12, 16)


def test_what_is_no_pixels_does_not_reach_the_decoder():
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000)))
    profile = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(20_000_000)))
    plain = encoded(photo())
    assert first_image(after_header(plain, bomb, profile)).data == plain
    assert safe_image(after_header(plain, *[bomb] * 50)).tobytes() == photo().tobytes()
    gif = encoded(photo().quantize(), "GIF")
    start = 13 + (3 << (gif[10] & 7) + 1)
    comments = b"!\xfe\x01x\0" * 30_000
    assert safe_image(gif[:start] + comments + gif[start:]).tobytes() == safe_image(gif).tobytes()
    jpeg = encoded(photo(), "JPEG")
    segments = b"\xff\xe2\xff\xff" + b"MPF\0" + bytes(65_529)
    assert first_image(jpeg[:2] + segments * 20 + jpeg[2:]).data == jpeg


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        (lambda: after_header(encoded(photo()), *[chunk(b"tEXt", b"")] * 100_001), "more than 100,000 chunks"),
        (lambda: encoded(photo(), "JPEG")[:2] + b"\xff\xe1\0\2" * 100_001, "more than 100,000 segments"),
        (lambda: encoded(photo(), "GIF")[:13] + b"!\xfe\1x\0" * 60_000, "more than 100,000 blocks"),
        (lambda: encoded(photo(), "JPEG")[:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * MAX_SCANS, "65 scans"),
        (lambda: tiff_of_large_values(), f"{MAX_DIRECTORY_BYTES:,} are read"),
        (lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * 100_001, "more than 100,000 boxes"),
    ],
    ids=["png", "jpeg", "gif", "scans", "tiff", "jpeg2000"],
)
def test_files_of_too_many_parts_are_refused(bomb, reason):
    with pytest.raises(UnsafeInputError, match=reason):
        safe_image(bomb())


def tiff_of_large_values() -> bytes:
    """Strip offsets, again and again, that all lie at the same place."""
    large = struct.pack("<HHII", 273, 4, 200_000, 8)
    return b"II*\0" + struct.pack("<IH", 8, 60) + large * 60 + bytes(1_000_000)


def test_of_a_tiff_only_the_first_directory_is_left():
    image = photo()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 1_000
    data = encoded(image, "TIFF", exif=exif, save_all=True, append_images=[photo(), photo()])
    left = first_image(data).data
    with Image.open(io.BytesIO(left)) as opened:
        assert opened.n_frames == 1
        assert 0x010E not in opened.tag_v2
    assert safe_image(data).tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


@pytest.mark.parametrize(("image_format", "pixels"), [("WEBP", "17,500,000"), ("JPEG2000", "4,000,000")])
def test_formats_that_take_more_memory_may_have_fewer_pixels(image_format, pixels, monkeypatch):
    side = 4_200 if image_format == "WEBP" else 2_050
    data = encoded(Image.new("L", (side, side)), image_format)
    with pytest.raises(UnsafeInputError, match=f"{image_format}: .* more than the limit of {pixels}"):
        safe_image(data)


def png_of(depth: int, colour_type: int, interlaced: bool = False, width: int = 40, height: int = 30) -> bytes:
    """A PNG as Pillow does not write it: with 16 bits a colour, or in seven passes."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for left, top, across, down in passes if interlaced else [(0, 0, 1, 1)]:
        columns, lines = -(-(width - left) // across), -(-(height - top) // down)
        rows += (b"\0" + bytes(columns * channels * depth // 8)) * lines
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# How an image is made of a size, what the message calls its kind, and its share of the pixels that others may have.
COSTLY = {
    "CMYK": (lambda size: encoded(Image.new("CMYK", size), "JPEG"), "CMYK", 0.6),
    "progressive": (lambda size: encoded(photo(*size), "JPEG", progressive=True), "progressive JPEG", 0.6),
    "both": (
        lambda size: encoded(photo(*size).convert("CMYK"), "JPEG", progressive=True),
        "progressive JPEG in CMYK",
        0.4,
    ),
    "LA": (lambda size: encoded(Image.new("LA", size)), "with transparency", 0.5),
    "RGBA": (lambda size: encoded(Image.new("RGBA", size), "TIFF", compression="tiff_lzw"), "with transparency", 0.5),
    "palette": (lambda size: encoded(Image.new("P", size), transparency=0), "with transparency", 0.5),
    "GIF": (lambda size: encoded(Image.new("P", size), "GIF", transparency=0), "with transparency", 0.5),
    "deep": (lambda size: png_of(16, 2, False, *size), "with 16 bits a colour", 0.6),
    "deep RGBA": (lambda size: png_of(16, 6, False, *size), "with transparency", 0.5),
    "interlaced": (lambda size: png_of(8, 2, True, *size), "interlaced PNG", 0.6),
    "fax": (lambda size: encoded(Image.new("1", size), "TIFF", compression="group4"), "fax TIFF", 0.7),
    "float": (
        lambda size: encoded(Image.new("F", size), "TIFF", compression="tiff_adobe_deflate"),
        "in floating point",
        0.4,
    ),
    "integer": (
        lambda size: encoded(Image.new("I", size), "TIFF", compression="tiff_adobe_deflate"),
        "in 32-bit levels",
        0.6,
    ),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_conversions_that_take_longer_may_have_fewer_pixels(kind):
    make, said, share = COSTLY[kind]
    data = make((40, 30))
    assert safe_image(data, max_pixels=int(1200 / share + 1)).size == (40, 30)
    with pytest.raises(UnsafeInputError, match=f"{said}: 40 x 30 = 1,200 pixels, more than the limit of 1,199"):
        safe_image(data, max_pixels=int(1199.5 / share))
    assert safe_image(encoded(Image.new("L", (40, 30))), max_pixels=1200).size == (40, 30)


def memory_of(function) -> int:
    """By how many bytes the memory of a process that does only this grows at most."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = used("VmRSS")
            function()
            os.write(writing, str(used("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as file:
        return int(file.read())


def used(name: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux counts memory there")
@pytest.mark.parametrize("kind", [*COSTLY, "JPEG", "PNG", "grey", "bilevel", "16 bits", "WEBP", "AVIF", "JPEG2000"])
def test_memory_is_bounded_by_the_pixels_that_are_allowed(kind):
    """50 million pixels of any kind, or what is allowed of it, take at most 400 MB; here a tenth of it."""
    size, exif = (2000, 1500), Image.Exif()
    exif[0x0112] = 6
    if kind in COSTLY:
        make, _, share = COSTLY[kind]
        data = make(size)
    else:
        share = {"WEBP": 0.35, "AVIF": 0.3, "JPEG2000": 0.08}.get(kind, 1)
        mode = {"grey": "L", "bilevel": "1", "16 bits": "I;16"}.get(kind, "RGB")
        image_format = kind if kind.isupper() or "JPEG" in kind else "PNG"
        data = encoded(Image.new(mode, size), image_format, **({} if kind == "JPEG2000" else {"exif": exif}))
    allowed = int(size[0] * size[1] / share)
    assert memory_of(lambda: safe_image(data, max_pixels=allowed + 1)) <= 8 * allowed + 10_000_000


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint16])
def test_arrays_take_no_copies_of_their_own_width(dtype):
    import tracemalloc

    array = np.zeros((1000, 1000) if dtype == np.uint16 else (1000, 1000, 4), dtype)
    tracemalloc.start()
    safe_image(array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * array.size + 6_000_000


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "CMYK", "RGB"])
def test_every_mode_is_turned(mode):
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    data = encoded(image if mode == "I;16" else image.convert(mode), "TIFF" if mode == "CMYK" else "PNG", exif=exif)
    turned = safe_image(data)
    assert (turned.size, turned.getpixel((14, 2)), turned.getpixel((2, 2))) == ((16, 32), (255,) * 3, (0,) * 3)


def test_long_names_are_shortened_and_base64_is_told():
    text = base64.b64encode(encoded(photo(300, 300))).decode()
    long_names = [text, "x/" * 400_000, {"path": "y" * 100_000}, f"https://example.org/{text}", {text: 1}]
    for source in long_names:
        with pytest.raises(UnsafeInputError) as caught:
            safe_image(source)
        assert len(str(caught.value)) < 600
    with pytest.raises(UnsafeInputError, match="look like base64.*data:image/png;base64,"):
        safe_image(text)


def test_a_file_named_as_an_address_is_told_so(tmp_path):
    with pytest.raises(UnsafeInputError, match="names a file as an address.*without file://"):
        safe_image(f"file://{tmp_path}/a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and links are a POSIX matter")
def test_what_is_no_file_is_refused_at_once(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    cases = {"a.png": "a loop of links", "pipe.png": "a named pipe", ".": "a folder", "/dev/zero": "a device"}
    for name, kind in cases.items():
        with pytest.raises(UnsafeInputError, match=f"this is {kind}, not a regular file"):
            safe_image(tmp_path / name)


@pytest.mark.parametrize("brand", ["heic", "mif1"])
def test_heic_opens_upright_and_within_limits(tmp_path, brand):
    pillow_heif = pytest.importorskip("pillow_heif", reason='pip install "hf_ravlm[heic]"')
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste("red", (0, 0, 32, 32))
    buffer = io.BytesIO()
    pillow_heif.from_pillow(upright).save(buffer, quality=100)
    data = buffer.getvalue()[:8] + brand.encode() + buffer.getvalue()[12:]
    path = tmp_path / "phone.HEIC"
    path.write_bytes(data)
    image = safe_image(path)
    assert (image.mode, image.size, type(image)) == ("RGB", (64, 32), Image.Image)
    assert image.getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=12)
    assert encoded_image(path) == data
    with pytest.raises(UnsafeInputError, match="HEIF: .* more than the limit of 900"):
        safe_image(path, max_pixels=3_000)
    for cut in (40, len(data) // 2, len(data) - 20):
        with pytest.raises(UnsafeInputError):
            safe_image(data[:cut])


def test_heic_that_is_turned_is_turned_once():
    pillow_heif = pytest.importorskip("pillow_heif", reason='pip install "hf_ravlm[heic]"')
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(Image.new("RGB", (64, 32), "red")).save(buffer, exif=exif.tobytes())
    assert safe_image(buffer.getvalue()).size == safe_image(encoded(Image.new("RGB", (64, 32)), exif=exif)).size


def test_without_its_library_heic_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnsafeInputError, match=r"pip install .hf_ravlm\[heic\]"):
        safe_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- logo -->\n<!DOCTYPE svg>"])
def test_svg_is_refused_in_words(head):
    with pytest.raises(UnsafeInputError, match="SVG.*Export it as PNG"):
        safe_image(head + b"<svg xmlns='http://www.w3.org/2000/svg'/>")


def test_avif_of_ten_bits_and_a_turned_one_open():
    data = encoded(Image.new("RGB", (64, 32), (200, 100, 50)), "AVIF", quality=100)
    assert safe_image(data).getpixel((9, 9)) == pytest.approx((200, 100, 50), abs=8)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert safe_image(encoded(Image.new("RGB", (64, 32)), "AVIF", exif=exif)).size == (32, 64)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_a_frame_may_be_chosen(tmp_path, image_format):
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    path = tmp_path / "moving"
    path.write_bytes(data)
    for frame, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        assert safe_image({"path": path, "frame": frame}).getpixel((3, 3)) == colour
        assert safe_image({"bytes": data, "frame": frame}).getpixel((3, 3)) == colour
        assert safe_image(encoded_image({"bytes": data, "frame": frame})).getpixel((3, 3)) == colour
    assert safe_image(data).getpixel((3, 3)) == (255, 0, 0)
    for frame in (3, -1, "1", 1.5, True, 10**9):
        with pytest.raises(UnsafeInputError, match="frame"):
            safe_image({"bytes": data, "frame": frame})
    with pytest.raises(UnsafeInputError, match="frame"):
        safe_image({"bytes": encoded(frames[0], "JPEG"), "frame": 1})


def test_frames_far_behind_are_not_unfolded():
    frames = [Image.new("L", (2_000, 2_000), level) for level in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(UnsafeInputError, match="200 frames of 4,000,000 pixels"):
        safe_image({"bytes": data, "frame": 200})


def test_colours_of_twelve_bits_in_sixteen_are_not_black():
    def png_of(highest: int) -> bytes:
        rows = b"".join(b"\0" + struct.pack(">3H", level, level // 2, 0) * 4 for level in (0, highest))
        header = struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0)
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    for bits in (10, 12, 14, 16):
        bright = safe_image(png_of(2**bits - 1)).getpixel((0, 1))
        assert bright[0] == 255, bits
        assert bright[1] == pytest.approx(127, abs=50)


def test_the_parts_with_most_details_are_found_and_do_not_lie_on_each_other():
    image = Image.new("RGB", (400, 400), "white")
    for corner in ((20, 20), (260, 260)):
        image.paste(Image.effect_noise((100, 100), 90).convert("RGB"), corner)
    first, second = detailed_crops(image, 2)
    for crop in (first, second):
        assert np.asarray(crop.convert("L")).std() > 30
    assert np.asarray(first).tobytes() != np.asarray(second).tobytes()
    assert detailed_crops(image, 0) == []
    assert detailed_crops(Image.new("L", (1, 1)), 3) == []
