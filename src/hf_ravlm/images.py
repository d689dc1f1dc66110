"""Images of any origin, made upright and RGB, or refused with a reason.

Every image enters the library through `safe_image`. Sizes are checked before a single pixel is decoded, because a
file of a hundred bytes can ask for gigabytes.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import UnsafeInputError


ImageSource = Union[str, "os.PathLike[str]", bytes, Mapping[str, Any], np.ndarray, Image.Image]

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")

MAX_BYTES = 50_000_000
MAX_PIXELS = 50_000_000
MAX_SIDE = 20_000
MAX_ASPECT = 50

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://|data:")
_EXIF_ORIENTATION = 0x0112
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

    Of an animation or a multi-page file the first frame is taken, EXIF orientation is applied, transparency is
    composited on white, and 16-bit or float grey levels are scaled to 8 bits: `convert("RGB")` of Pillow does none of
    it. A plain RGB `PIL` image is returned as it is.

    Args:
        source: A path; encoded `bytes`; the same as text, `"data:image/png;base64,..."`, as chats carry them; a
            dictionary `{"bytes": ..., "path": ...}` as `datasets` gives; a `numpy` array of shape (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4), either `uint8` or float in 0..1 (a (H, W) array may be `uint16`); or a
            `PIL.Image.Image`.
        max_bytes: Largest encoded size, in bytes.
        max_pixels: Largest width x height. Pillow's own `PIL.Image.MAX_IMAGE_PIXELS` still applies beyond it.
        max_side: Largest width and largest height, in pixels.
        max_aspect: Largest ratio of the long side to the short one.

    Raises:
        UnsafeInputError: If the source is missing, broken, of an unknown format, over a limit, or a URL.

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
        image, filename = source, getattr(source, "filename", "")
        size = f"{source.mode} image of {source.width} x {source.height} pixels"
        label = os.fsdecode(filename) if filename else size
    else:
        data, label = _read_encoded(source, max_bytes)
        image = _open_encoded(data, label, max_pixels)
    check_size(*image.size, label)
    return _upright_rgb(image, label)


def encoded_image(source: ImageSource, **limits: Any) -> bytes:
    r"""Checks an image and returns it as encoded bytes, to be stored; arguments and errors as `safe_image`.

    What is already encoded (a path, bytes, a `datasets` dictionary) is returned byte for byte; an array or a `PIL`
    image is written as PNG, without loss.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_ravlm.images import encoded_image, safe_image
    >>> data = encoded_image(Image.new("RGB", (4, 2), "red"))
    >>> data[:4], safe_image(data).getpixel((0, 0))
    (b'\x89PNG', (255, 0, 0))

    ```
    """
    if isinstance(source, (Image.Image, np.ndarray)):
        buffer = io.BytesIO()
        safe_image(source, **limits).save(buffer, format="PNG")
        return buffer.getvalue()
    data, label = _read_encoded(source, limits.get("max_bytes", MAX_BYTES))
    safe_image({"bytes": data, "path": label}, **limits)
    return data


def shrunk(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """The image with at most `max_pixels`, in the same shape; one that is small enough is returned as it is.

    >>> shrunk(Image.new("RGB", (4000, 3000)), 120_000).size, shrunk(Image.new("RGB", (40, 30)), 120_000).size
    ((400, 300), (40, 30))
    """
    if max_pixels is None or image.width * image.height <= max_pixels:
        return image
    scale = (max_pixels / (image.width * image.height)) ** 0.5
    size = max(int(image.width * scale), 1), max(int(image.height * scale), 1)
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def trim_margins(image: Image.Image) -> Image.Image:
    """Cuts the white margin around a drawing, if there clearly is one.

    Icon sets draw the same thing at different sizes on their white squares, and a small encoder that sees images at
    one fixed size mistakes the margin for a part of it. White *in* a drawing reaches its edge too, so the margin is
    cut only where what is left looks like a whole drawing with edges of its own:

    - it stands in the middle: opposite margins differ by at most 6 % of the side;
    - it is 0.9 to 2.2 times as wide as high, at least 40 % of the image's width and 30 % of its height;
    - along each of its four edges at least half of the length is not white (in a strip as deep as 2 % of its height).

    Everything else is left alone: photographs, drawings that fill their image, objects off the centre, round or
    ragged objects, images that are all white.

    Args:
        image: An image on opaque ground, as `safe_image` returns it. White is 248 or more in every channel.

    Returns:
        The part inside the margin, or `image` itself where nothing is cut.

    Example:

    ```python
    >>> from PIL import Image
    >>> icon = Image.new("RGB", (72, 72), "white")
    >>> icon.paste("navy", (4, 16, 68, 56))
    >>> trim_margins(icon).size
    (64, 40)
    >>> icon.paste("white", (4, 16, 68, 36))  # a white upper half: the rest is no longer in the middle
    >>> trim_margins(icon).size
    (72, 72)

    ```
    """
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
    ink = (red < 248) | (green < 248) | (blue < 248)  # (H, W); bool: not white
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not len(rows):
        return image
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    width, height = right - left, bottom - top
    box, depth = ink[top:bottom, left:right], max(1, round(0.02 * height))
    edges = box[:depth], box[-depth:], box[:, :depth].T, box[:, -depth:].T
    is_whole_drawing = (
        (width, height) != image.size
        and abs(left - (image.width - right)) <= 0.06 * image.width
        and abs(top - (image.height - bottom)) <= 0.06 * image.height
        and 0.9 <= width / height <= 2.2
        and width >= 0.4 * image.width
        and height >= 0.3 * image.height
        and min(edge.any(axis=0).mean() for edge in edges) >= 0.5
    )
    return image.crop((left, top, right, bottom)) if is_whole_drawing else image


def _read_encoded(source: Any, max_bytes: int) -> tuple[bytes, str]:
    """The encoded bytes of a source, and its name in messages."""
    if isinstance(source, Mapping):
        data, path = source.get("bytes"), source.get("path")
        if data is None and path is None:
            raise UnsafeInputError(
                f"An image dictionary has the keys {sorted(map(str, source))} and neither `bytes` nor `path` is set. "
                'Pass {"bytes": ...} or {"path": ...}.'
            )
        if data is None:
            return _read_encoded(path, max_bytes)
        _, label = _read_encoded(data, max_bytes)
        return bytes(data), str(path) if path else label
    if isinstance(source, (bytes, bytearray, memoryview)):
        label = f"image of {len(source):,} bytes"
        _check_num_bytes(len(source), label, max_bytes)
        return bytes(source), label
    if isinstance(source, str) and source.startswith("data:image/"):
        return _read_data_url(source, max_bytes)
    if isinstance(source, (str, os.PathLike)):
        return _read_file(os.fspath(source), max_bytes)
    raise UnsafeInputError(
        f"An image came as {type(source).__module__}.{type(source).__qualname__}. Expected a path, bytes, a "
        '{"bytes", "path"} dictionary, a numpy array (H, W, 3) or a PIL image.'
    )


def _read_data_url(source: str, max_bytes: int) -> tuple[bytes, str]:
    head, _, text = source.partition(",")
    label = f"{head[:100]} of {len(text):,} letters"
    _check_num_bytes(len(text) * 3 // 4, label, max_bytes)
    if not head.endswith(";base64"):
        raise UnsafeInputError(f"{label}: expected data:image/png;base64,... with the encoded image after the comma.")
    try:
        return base64.b64decode(text, validate=True), label
    except (binascii.Error, ValueError) as error:
        raise UnsafeInputError(f"{label}: the base64 text cannot be decoded ({error}). Encode it again.") from error


def _read_file(path: str | bytes, max_bytes: int) -> tuple[bytes, str]:
    label = os.fsdecode(path)
    if _URL.match(label):
        raise UnsafeInputError(
            f"{label[:200]}: this is a URL, and images are never fetched from the network here. Download the image "
            "and pass its path or its bytes."
        )
    try:
        status = os.stat(path)
        # A pipe or a device would block or never end.
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeInputError(f"{label}: this is not a regular file. Pass the path of an image file.")
        _check_num_bytes(status.st_size, label, max_bytes)
        with open(path, "rb") as file:
            return file.read(max_bytes), label
    except FileNotFoundError as error:
        raise UnsafeInputError(f"{label}: there is no such file. Check the path of the image.") from error
    except (OSError, ValueError) as error:
        raise UnsafeInputError(f"{label}: the image file cannot be read ({error}).") from error


def _check_num_bytes(num_bytes: int, label: str, max_bytes: int) -> None:
    if num_bytes == 0:
        raise UnsafeInputError(f"{label}: the image is empty (0 bytes). Provide it again.")
    if num_bytes > max_bytes:
        raise UnsafeInputError(
            f"{label}: {num_bytes:,} bytes, more than the limit of {max_bytes:,}. Shrink the image, or raise "
            "`max_bytes` if you trust its source."
        )


def _open_encoded(data: bytes, label: str, max_pixels: int) -> Image.Image:
    """Reads the header only; no pixel is decoded yet."""
    try:
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        raise UnsafeInputError(
            f"{label}: the content is not an image in one of the formats {', '.join(IMAGE_FORMATS)}, whatever the "
            "name says. Convert it to PNG or JPEG."
        ) from error
    except Image.DecompressionBombError as error:
        raise UnsafeInputError(
            f"{label}: more pixels than the limit of {max_pixels:,} ({error}) Resize the image."
        ) from error
    except Exception as error:  # A broken header raises almost any type: struct.error, SyntaxError, KeyError, ...
        raise UnsafeInputError(f"{label}: the image header is broken ({error!r}). Provide the image again.") from error


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
    if not np.isfinite(array).all():
        raise UnsafeInputError(f"{label}: the image holds NaN or infinite values. Expected float in 0..1.")
    low, high = float(array.min()), float(array.max())
    # Interpolation overshoots by a rounding error; anything beyond that is another scale.
    if low < -1e-3 or high > 1 + 1e-3:
        raise UnsafeInputError(
            f"{label}: values from {low:g} to {high:g}. Expected float in 0..1; for values in 0..255 pass "
            "`array.astype(numpy.uint8)`."
        )
    return np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)


def _upright_rgb(image: Image.Image, label: str) -> Image.Image:
    try:
        image.load()
        with suppress(Exception):  # A broken EXIF block must not lose a sound image.
            if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
        if image.mode == "RGB" and "transparency" not in image.info:
            return image if type(image) is Image.Image else image.convert("RGB")
        if image.mode.startswith("I") or image.mode == "F":
            return _grey_from_wide(image, label).convert("RGB")
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except UnsafeInputError:
        raise
    except Exception as error:  # Decoders raise OSError, SyntaxError, struct.error, zlib.error, ValueError, ...
        raise UnsafeInputError(
            f"{label}: the image is broken or incomplete ({error}). Provide it again, or leave it out."
        ) from error


def _grey_from_wide(image: Image.Image, label: str) -> Image.Image:
    """Scales 16-bit, 32-bit integer and float grey levels to 8 bits; Pillow's `convert` would clip them at 255."""
    levels = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(levels).all():
            raise UnsafeInputError(f"{label}: the image holds NaN or infinite values.")
        # A little more than 1 is light beyond white; on the scale of bytes it would be black.
        highest = float(levels.max())
        scale, limit = (255.0 / max(highest, 1.0) if highest <= _BRIGHTEST else 1.0), 255
    else:
        # Cameras and scanners put 10 to 14 bits into 16: as wide as what is there.
        limit = next((2**bits - 1 for bits in (8, 10, 12, 14) if levels.max() < 2**bits), 65535)
        scale = 255 / limit
    if levels.min() < 0 or levels.max() > limit:
        raise UnsafeInputError(
            f"{label}: grey levels from {levels.min():g} to {levels.max():g}. Expected 0..1 or 0..255 for float and "
            "0..65535 for integer images. Scale the image first."
        )
    return Image.fromarray(np.rint(levels * scale).astype(np.uint8))
