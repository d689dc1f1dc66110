"""Images of any origin: made upright and RGB within limits of bytes, pixels, metadata and time, or refused.

`safe_image` is the one gate; `fetch_image` brings an image from an address to it.
"""

from __future__ import annotations

from .addresses import fetch_bytes, fetch_image, is_address
from .gate import MAX_ASPECT, MAX_BYTES, MAX_PIXELS, MAX_SIDE, ImageSource, encoded_image, safe_image
from .kinds import IMAGE_FORMATS, IMAGE_SUFFIXES
from .regions import crop_region, detailed_crops
from .several import first_of, several
from .trimming import shrunk, trim_margins


__all__ = [
    "IMAGE_FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_ASPECT",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "ImageSource",
    "crop_region",
    "detailed_crops",
    "encoded_image",
    "fetch_bytes",
    "fetch_image",
    "first_of",
    "is_address",
    "safe_image",
    "several",
    "shrunk",
    "trim_margins",
]
