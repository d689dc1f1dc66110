"""Images of any origin, made upright and RGB, or refused with a reason.

Every image enters the library through `safe_image`. Sizes are checked before a single pixel is decoded, because a
file of a hundred bytes can ask for gigabytes; what is no pixels is left out before a decoder unfolds it (`headers`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Union

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UnsafeInputError
from .headers import exif_orientation, first_image, xmp_orientation
from .kinds import IMAGE_FORMATS, frame_of, is_heif, is_svg, open_heif, seek_frame
from .sources import read_encoded, shortened


ImageSource = Union[str, "os.PathLike[str]", bytes, Mapping[str, Any], np.ndarray, Image.Image]


MAX_BYTES = 50_000_000
MAX_PIXELS = 50_000_000
MAX_SIDE = 20_000
MAX_ASPECT = 50

# How many of the pixels decoders and conversions may be given that hold several copies of an image, or take long.
_SHARES = {
    "WEBP": 0.35,
    "AVIF": 0.3,
    "HEIF": 0.3,
    "JPEG2000": 0.08,
    "progressive JPEG": 0.6,
    "progressive JPEG in CMYK": 0.4,
    "interlaced PNG": 0.6,
    "fax TIFF": 0.7,
    "run-length BMP": 0.04,
    "CMYK": 0.6,
    "with transparency": 0.5,
    "with 16 bits a colour": 0.6,
    "in floating point": 0.4,
    "in 32-bit levels": 0.6,
}
_EXIF_ORIENTATION, _TIFF_BITS = 0x0112, 258
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP_PIXELS = 1 << 20
_BRIGHTEST = 16.0  # the most that a float image on the scale 0..1 may hold


def safe_image(
    source: ImageSource,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
    max_aspect: float = MAX_ASPECT,
) -> Image.Image:
    """Opens an image from anywhere but the network and returns it upright, in RGB.

    Of an animation or a multi-page file the first frame is taken, or the one that a dictionary asks for, EXIF
    orientation is applied, transparency is composited on white, and levels of more than 8 bits are scaled by their
    real range: `convert("RGB")` of Pillow does none of it. A plain RGB `PIL` image is returned as it is. HEIC needs
    pillow-heif (`pip install "hf_ravlm[heic]"`).

    Args:
        source: A path; encoded `bytes`; the same as text, `"data:image/png;base64,..."`, as chats carry them; a
            dictionary `{"bytes": ..., "path": ...}` as `datasets` gives, to which `"frame": 3` may be added; a
            `numpy` array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), either `uint8` or float in 0..1 (a (H, W)
            array may be `uint16`); or a `PIL.Image.Image`.
        max_bytes: Largest encoded size, in bytes.
        max_pixels: Largest width x height. Pillow's own `PIL.Image.MAX_IMAGE_PIXELS` still applies beyond it.
        max_side: Largest width and largest height, in pixels.
        max_aspect: Largest ratio of the long side to the short one.

    Raises:
        UnsafeInputError: If the source is missing, broken, of an unknown format, over a limit, or an address.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_ravlm.images import safe_image
    >>> image = safe_image(np.array([[0.0, 0.5, 1.0]]))
    >>> image.mode, image.size, image.getpixel((1, 0))
    ('RGB', (3, 1), (128, 128, 128))

    ```
    """
    check_size = partial(_check_size, max_pixels=max_pixels, max_side=max_side, max_aspect=max_aspect)
    if isinstance(source, np.ndarray):
        label = f"array of shape {source.shape} and type {source.dtype}"
        return _upright_rgb(_image_from_array(source, label, check_size), label)
    if isinstance(source, Image.Image):
        filename = getattr(source, "filename", "")
        size = f"{source.mode} image of {source.width} x {source.height} pixels"
        label = shortened(os.fsdecode(filename)) if filename else size
        check_size(*source.size, label)
        return _upright_rgb(source, label)
    frame = frame_of(source)
    image, orientation, label = _open_encoded(*read_encoded(source, max_bytes), max_pixels, frame)
    check_size(*image.size, label)
    if limited := [kind for kind in _kinds_of(image) if kind in _SHARES]:
        kind = min(limited, key=lambda kind: _SHARES[kind])
        check_size(*image.size, f"{label}, {kind}", max_pixels=int(max_pixels * _SHARES[kind]))
    if frame and image.format != "TIFF":
        seek_frame(image, frame, label, max_pixels)
    result = _upright_rgb(image, label, orientation, is_ours=True)
    check_size(*result.size, label)  # a HEIC decoder may find another size than its header says
    return result


def encoded_image(source: ImageSource, **limits: Any) -> bytes:
    r"""Checks an image and returns it as encoded bytes, to be stored; arguments and errors as `safe_image`.

    What is already encoded (a path, bytes, a `datasets` dictionary) is returned byte for byte; an array, a `PIL`
    image or a frame other than the first is written as PNG, without loss.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_ravlm.images import encoded_image, safe_image
    >>> data = encoded_image(Image.new("RGB", (4, 2), "red"))
    >>> data[:4], safe_image(data).getpixel((0, 0))
    (b'\x89PNG', (255, 0, 0))

    ```
    """
    if isinstance(source, (Image.Image, np.ndarray)) or frame_of(source):
        buffer = io.BytesIO()
        safe_image(source, **limits).save(buffer, format="PNG")
        return buffer.getvalue()
    data, label = read_encoded(source, limits.get("max_bytes", MAX_BYTES))
    safe_image({"bytes": data, "path": label}, **limits)
    return data


def _open_encoded(data: bytes, label: str, max_pixels: int, frame: int = 0) -> tuple[Image.Image, int, str]:
    """Reads the header only, no pixel is decoded yet; the image, its orientation and its label."""
    if is_svg(data):
        raise UnsafeInputError(
            f"{label}: the content is not an image in one of the formats {', '.join(IMAGE_FORMATS)}: it is SVG, a "
            "drawing in text, which is not drawn here. Export it as PNG."
        )
    try:
        first = first_image(data, frame)
    except ValueError as error:
        raise UnsafeInputError(f"{label}: the image is not read: {error}. Save it again without the rest.") from error
    del data
    try:
        if is_heif(first.data):
            return open_heif(first.data, label), 1, label
        return Image.open(io.BytesIO(first.data), formats=IMAGE_FORMATS), first.orientation, label
    except UnidentifiedImageError as error:
        raise UnsafeInputError(
            f"{label}: the content is not an image in one of the formats {', '.join(IMAGE_FORMATS)}, whatever the "
            "name says. Convert it to PNG or JPEG."
        ) from error
    except UnsafeInputError:
        raise
    except Image.DecompressionBombError as error:
        raise UnsafeInputError(
            f"{label}: more pixels than the limit of {max_pixels:,} ({error}) Resize the image."
        ) from error
    except Exception as error:  # A broken header raises almost any type: struct.error, SyntaxError, KeyError, ...
        raise UnsafeInputError(
            f"{label}: the image header is broken ({shortened(repr(error))}). Provide it again."
        ) from error


def _kinds_of(image: Image.Image) -> Iterator[str]:
    """What it is that may take long of an image, of which the header alone was read."""
    yield image.format or ""
    if image.format == "JPEG" and "progressive" in image.info:
        yield "progressive JPEG in CMYK" if image.mode == "CMYK" else "progressive JPEG"
    if image.format == "PNG" and image.info.get("interlace"):
        yield "interlaced PNG"
    if image.format == "TIFF" and image.info.get("compression") in ("tiff_ccitt", "group3", "group4"):
        yield "fax TIFF"
    tiles = getattr(image, "tile", None)  # of an image that is read from a file
    if image.format == "BMP" and tiles and tiles[0].codec_name == "bmp_rle":
        yield "run-length BMP"
    if image.has_transparency_data:
        yield "with transparency"
    if _is_deep_colour(image):
        yield "with 16 bits a colour"
    yield {"CMYK": "CMYK", "F": "in floating point", "I": "in 32-bit levels"}.get(image.mode, "")


def _check_size(width: int, height: int, label: str, *, max_pixels: int, max_side: int, max_aspect: float) -> None:
    size = f"{width:,} x {height:,}"
    if width < 1 or height < 1:
        raise UnsafeInputError(f"{label}: the image has no pixels ({size}).")
    if width * height > max_pixels:
        raise UnsafeInputError(
            f"{label}: {size} = {width * height:,} pixels, more than the limit of {max_pixels:,}. Resize the image, "
            "or raise `max_pixels` if you trust its source."
        )
    if max(width, height) > max_side:
        raise UnsafeInputError(
            f"{label}: {size} pixels, and the longest side allowed is {max_side:,}. Resize the image, or raise "
            "`max_side` if you trust its source."
        )
    # Image processors scale the short side up to a fixed size: a strip of 100 bytes then costs gigabytes.
    if max(width, height) > max_aspect * min(width, height):
        raise UnsafeInputError(
            f"{label}: {size} pixels, and one side may be at most {max_aspect:g} times the other. Crop the image, "
            "or raise `max_aspect` if you trust its source."
        )


def _image_from_array(array: np.ndarray, label: str, check_size: Any) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        is_transposed = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = " The channels seem to come first: use `array.transpose(1, 2, 0)`." if is_transposed else ""
        raise UnsafeInputError(f"{label}: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).{hint}")
    check_size(array.shape[1], array.shape[0], label)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if np.issubdtype(array.dtype, np.floating):
        array = _unit_floats_to_bytes(array, label)
    elif array.dtype != np.uint8 and not (array.dtype == np.uint16 and array.ndim == 2):
        raise UnsafeInputError(f"{label}: expected uint8 in 0..255 or float in 0..1. Convert the array first.")
    return Image.fromarray(np.ascontiguousarray(array))


def _unit_floats_to_bytes(array: np.ndarray, label: str) -> np.ndarray:
    result, extremes = np.empty(array.shape, np.uint8), []
    for _, top, _, bottom in _strips((array.shape[1], array.shape[0]), pixels=1 << 16):  # what a cache holds
        strip = array[top:bottom].astype(np.promote_types(array.dtype, np.float32))  # half precision is slow
        extremes += [strip.min(), strip.max()]
        if not np.isfinite(extremes[-2:]).all():
            raise UnsafeInputError(f"{label}: the image holds NaN or infinite values. Expected float in 0..1.")
        result[top:bottom] = np.clip(np.rint(strip * 255), 0, 255)
    low, high = float(np.min(extremes)), float(np.max(extremes))
    # Interpolation overshoots by a rounding error; anything beyond that is another scale.
    if low < -1e-3 or high > 1 + 1e-3:
        raise UnsafeInputError(
            f"{label}: values from {low:g} to {high:g}. Expected float in 0..1; for values in 0..255 pass "
            "`array.astype(numpy.uint8)`."
        )
    return result


def _upright_rgb(image: Image.Image, label: str, orientation: int = 1, is_ours: bool = False) -> Image.Image:
    """Decodes an image; there are never more than two copies of its pixels."""
    try:
        is_deep = _is_deep_colour(image)
        image.load()
        orientation = orientation if orientation != 1 else _orientation_of(image)
        if is_ours and orientation != 1 and image.mode in ("1", "L", "P"):  # before a byte becomes three
            turned = image.transpose(_UPRIGHT[orientation])
            image.close()
            image, orientation = turned, 1
        if image.mode == "RGB" and "transparency" not in image.info:
            if orientation == 1 and type(image) is Image.Image:
                return image
            result = image._new(image.im) if is_ours else image.copy()  # the same pixels, without the file
        elif image.mode.startswith("I") or image.mode == "F":
            result = _grey_from_wide(image, label)
        elif image.has_transparency_data:
            result = _on_white(image)
        else:
            result = image.convert("RGB")
        if is_ours:
            image.close()  # before the next copy is made
        if result.mode == "L":
            result, orientation = result.transpose(_UPRIGHT[orientation]) if orientation != 1 else result, 1
            result = result.convert("RGB")
        result = _full_range(result) if is_deep else result
        if orientation != 1:
            result = result.transpose(_UPRIGHT[orientation])
        result.info.clear()  # which says how the file was turned
        return result
    except UnsafeInputError:
        raise
    except Exception as error:  # Decoders raise OSError, SyntaxError, struct.error, zlib.error, ValueError, ...
        raise UnsafeInputError(
            f"{label}: the image is broken or incomplete ({shortened(str(error))}). Provide it again, or leave it out."
        ) from error


def _orientation_of(image: Image.Image) -> int:
    """Of an image that somebody else opened, and of formats that keep Exif apart from the pixels."""
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    if isinstance(exif, bytes) and (orientation := exif_orientation(exif)) != 1:
        return orientation
    if isinstance(xmp, bytes):
        return xmp_orientation(xmp)
    if image.format is None and exif is None:  # made in memory, where only a program can have set it
        with suppress(Exception):  # a broken block must not lose a sound image
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            return orientation if orientation in _UPRIGHT else 1
    return 1


def _strips(size: tuple[int, int], pixels: int = _STRIP_PIXELS) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of about so many pixels, from top to bottom."""
    width, height = size
    step = max(1, pixels // width)
    for top in range(0, height, step):
        yield 0, top, width, min(top + step, height)


def _on_white(image: Image.Image) -> Image.Image:
    whole = Image.new("RGB", image.size, "white")
    for box in _strips(image.size):
        strip = image.crop(box).convert("RGBA")
        whole.paste(strip, box, strip)
    return whole


def _grey_from_wide(image: Image.Image, label: str) -> Image.Image:
    """Scales 16-bit, 32-bit integer and float grey levels to 8 bits; Pillow's `convert` would clip them at 255."""
    extremes = [(levels.min(), levels.max()) for levels in map(np.asarray, _crops(image))]
    low, high = float(np.min(extremes)), float(np.max(extremes))
    if image.mode == "F":
        if not np.isfinite(extremes).all():
            raise UnsafeInputError(f"{label}: the image holds NaN or infinite values.")
        # A little more than 1 is light beyond white; on the scale of bytes it would be black.
        scale, limit = (255.0 / max(high, 1.0) if high <= _BRIGHTEST else 1.0), 255
    else:
        # Cameras and scanners put 10 to 14 bits into 16: as wide as the file says, or as what is there.
        stated = _stated_bits(image)
        limit = next((2**bits - 1 for bits in (8, 10, 12, 14) if stated <= bits and high < 2**bits), 65535)
        scale = 255 / limit
    if low < 0 or high > limit:
        raise UnsafeInputError(
            f"{label}: grey levels from {low:g} to {high:g}. Expected 0..1 or 0..255 for float and "
            "0..65535 for integer images. Scale the image first."
        )
    whole = Image.new("L", image.size)
    table = None if image.mode == "F" else np.rint(np.arange(limit + 1) * scale).astype(np.uint8)
    for box, strip in zip(_strips(image.size), _crops(image), strict=True):
        levels = np.asarray(strip)
        grey = np.rint(levels * scale).astype(np.uint8) if table is None else table[levels]
        whole.paste(Image.fromarray(grey), box)
    return whole


def _stated_bits(image: Image.Image) -> int:
    """How many bits a TIFF file says that each level has, if fewer than 16; 0 where it says nothing."""
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, 0)
    bits = bits[0] if isinstance(bits, tuple) and bits else bits
    return bits if isinstance(bits, int) and 8 < bits < 16 else 0


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether a file has 16 bits for each colour, of which Pillow reads the upper 8."""
    tiles = getattr(image, "tile", None) or [("", None, 0, "")]
    return "RGB" in image.mode and ";16" in str(tiles[0][3])


def _full_range(image: Image.Image) -> Image.Image:
    """Stretches the colours of a 16-bit file that holds only 10, 12 or 14 bits, which would be nearly black."""
    highest = int(np.max(image.getextrema()))
    limit = next((2**bits - 1 for bits in (2, 4, 6) if 0 < highest < 2**bits), 255)
    return image if limit == 255 else image.point([min(round(level * 255 / limit), 255) for level in range(256)] * 3)


def _crops(image: Image.Image) -> Iterator[Image.Image]:
    return (image.crop(box) for box in _strips(image.size))
