"""Kinds of images that Pillow alone does not read: HEIC by another library, drawings in text not at all; frames."""

from __future__ import annotations

import io
import re
from typing import Any

from PIL import Image

from ..errors import UnsafeInputError


IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")  # of Pillow
_OF_PILLOW = frozenset(name for name, kind in Image.registered_extensions().items() if kind in IMAGE_FORMATS)
IMAGE_SUFFIXES = _OF_PILLOW | {".heic", ".heif", ".hif"}
MAX_FRAME = 10_000

_HEIF_BRANDS = re.compile(b"heic|heix|heim|heis|hevc|hevx|hevm|hevs|mif1|msf1|jpeg")
_AVIF_BRANDS = re.compile(b"avif|avis")
_SVG = re.compile(rb"\s*(<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE[^>\[]*(\[.*?\])?[^>]*>|\s)*<(\w+:)?svg\b", re.DOTALL)


def is_svg(data: bytes) -> bool:
    """Whether a file is a drawing in the language SVG.

    >>> is_svg(b"<?xml version='1.0'?><!-- a logo --><svg xmlns='http://www.w3.org/2000/svg'/>"), is_svg(b"<html>")
    (True, False)
    """
    return _SVG.match(data[:4096].removeprefix(b"\xef\xbb\xbf")) is not None


def is_heif(data: bytes) -> bool:
    """Whether a file is HEIC or HEIF; AVIF has the same boxes and is read by Pillow."""
    if data[4:8] != b"ftyp":
        return False
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 264)]
    return bool(_HEIF_BRANDS.match(brands)) and not _AVIF_BRANDS.search(brands)


def open_heif(data: bytes, label: str) -> Image.Image:
    """Opens a HEIC file; its pixels are not decoded yet, and its boxes, not its Exif, say how it is turned.

    Raises:
        UnsafeInputError: If pillow-heif is not installed.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise UnsafeInputError(
            f'{label}: HEIC images are read with pillow-heif. Install: pip install "hf_ravlm[heic]", or convert the '
            "image to JPEG."
        ) from error
    image: Image.Image = HeifImageFile(io.BytesIO(data))
    return image


def seek_frame(image: Image.Image, frame: int, label: str, max_pixels: int) -> None:
    """Goes to a frame of an animation, or a page of a TIFF file; decoders pass through all frames before it.

    Raises:
        UnsafeInputError: If there is no such frame, or it takes more than ten images of the largest size to get there.
    """
    pixels = image.width * image.height
    if frame * pixels > 10 * max_pixels:
        raise UnsafeInputError(
            f"{label}: {frame} frames of {pixels:,} pixels stand before frame {frame}, more than {10 * max_pixels:,} "
            "pixels in all. Save the frame as an image of its own."
        )
    try:
        image.seek(frame)
    except EOFError as error:
        number = getattr(image, "n_frames", 1)
        raise UnsafeInputError(f"{label}: there is no frame {frame}; its frames are 0 to {number - 1}.") from error


def frame_of(source: Any) -> int:
    """The frame that a source asks for: `{"path": "kite.gif", "frame": 3}`; 0 where it asks for none.

    Raises:
        UnsafeInputError: If that is no whole number from 0.
    """
    frame = source.get("frame") if isinstance(source, dict) else None
    if frame is None:
        return 0
    if not isinstance(frame, int) or isinstance(frame, bool) or not 0 <= frame <= MAX_FRAME:
        raise UnsafeInputError(f"frame={str(frame)[:50]!r}: expected a whole number from 0 to {MAX_FRAME:,}.")
    return frame
