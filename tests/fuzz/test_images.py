"""Any bytes as an image: opened within the limits, or refused in one line of one class; at once, in little memory."""

from __future__ import annotations

import io
import resource
import time
import warnings

import numpy as np
from damage import with_flipped_bits
from fuzzing import choose, run_cases
from PIL import Image

from hf_ravlm.errors import UnsafeInputError
from hf_ravlm.images import IMAGE_FORMATS, safe_image


MOST_MEMORY = 400  # MB beyond what the process had
MOST_SECONDS = 10  # of its processor, on any machine; one is the aim


def _originals() -> list[bytes]:
    random, files = np.random.default_rng(0), []
    for mode, channels in (("RGB", 3), ("RGBA", 4), ("L", 1)):
        image = Image.fromarray(random.integers(0, 256, (24, 32, channels), dtype=np.uint8).squeeze(), mode)
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "words"
        for image_format in IMAGE_FORMATS:
            buffer = io.BytesIO()
            shown = image.convert("RGB") if image_format in ("JPEG", "BMP") else image
            options = {"exif": exif} if image_format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}
            if image_format == "JPEG" and mode == "L":
                options["progressive"] = True
            shown.save(buffer, image_format, **options)
            files.append(buffer.getvalue())
    return files


def _with_larger_numbers(data: bytes, random: np.random.Generator) -> bytes:
    """A run of bytes near the start becomes very large or very small: sizes, counts, offsets."""
    place, width = int(random.integers(min(len(data), 200))), choose(random, [1, 2, 4])
    value = choose(random, [b"\xff", b"\0", b"\x7f", b"\x01"]) * width
    return data[:place] + value + data[place + width :]


def _with_repeated_part(data: bytes, random: np.random.Generator) -> bytes:
    start = int(random.integers(min(len(data), 400)))
    part = data[start : start + int(random.integers(1, 200))]
    return data[:start] + part * int(random.integers(2, 20_000)) + data[start:]


HARM = (with_flipped_bits, _with_larger_numbers, _with_larger_numbers, _with_repeated_part)


def test_damaged_images(tmp_path):
    originals = _originals()

    def case(random):
        data = choose(random, originals)
        for _ in range(int(random.integers(1, 4))):
            data = choose(random, HARM)(data, random)
        data = data[: choose(random, [len(data), len(data), int(random.integers(len(data) + 1))])]
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        refused = ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = safe_image(data)
                assert image.mode == "RGB"
                assert image.width * image.height <= 50_000_000
            except UnsafeInputError as error:
                refused = str(error)
        assert "\n" not in refused
        assert len(refused) < 1_000
        assert time.process_time() - start < MOST_SECONDS
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MEMORY

    run_cases("test_damaged_images", case, 150, tmp_path)
