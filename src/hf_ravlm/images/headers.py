"""What stands before the pixels of an encoded image: found within bounds, and left out.

Exif, XMP, ICC profiles, comments and further frames take no part in what we read, and a decoder that unfolds them can
be held for minutes by a file of two megabytes. Here a file is walked once, without unfolding anything, in a bounded
number of steps; the decoder gets what it needs for the first image and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple


MAX_BLOCKS = 100_000  # segments, chunks, boxes or entries before the pixels; files of 50 MB in the wild have 10,000
MAX_SCANS = 64  # passes over the pixels of a progressive JPEG; common encoders write 10
MAX_DIRECTORY_BYTES = 2_000_000  # of the values of a TIFF directory: 50 million pixels in tiles need half of it

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xfe])")
_JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}
_JPEG_SCAN, _JPEG_APP1 = 0xDA, 0xE1
_JPEG_DROPPED = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP1 to APP15 without APP14, which says how colours are stored; COM
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"sBIT", b"IDAT"}
_PNG_FRAMES = frozenset({b"acTL", b"fcTL", b"fdAT"})
_GIF_BLOCK = re.compile(rb"[!,;]")
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# Size, depth, compression, colours, strips, tiles, ranges of levels, orientation; not Exif, XMP, Photoshop's layers.
_TIFF_KEPT = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 274, 277, 278, 279, 280, 281, 284, 292, 293, 317, 320, 322),
    *(323, 324, 325, 332, 334, 336, 338, 339, 340, 341, 347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532),
}


class FirstImage(NamedTuple):
    """What a decoder needs of a file.

    Args:
        data (`bytes`): The file without the rest.
        orientation (`int`): 1 to 8, as Exif counts, where the file says it outside of what is left in `data`.
    """

    data: bytes
    orientation: int = 1


def first_image(data: bytes, frame: int = 0) -> FirstImage:
    """The first image of an encoded file, without anything that is neither pixels nor needed to read them.

    With another `frame` all of them are kept, except in TIFF files, where that one becomes the first.

    Files of other formats, and files cut short, come back as they are: the decoder says what is wrong with them.

    Raises:
        ValueError: If the file has more blocks, scans or entries than any honest one; the reason, for a message.
    """
    for start, walk in _WALKS:
        if data.startswith(start):
            try:
                return walk(data, frame)
            except (struct.error, IndexError):  # the file ends in the middle of a block
                return FirstImage(data)
    if data[4:8] in (b"ftyp", b"jP  "):
        return _boxes(data)
    return FirstImage(data)


def exif_orientation(block: bytes) -> int:
    r"""The orientation in an Exif block, 1 to 8, and 1 where it says none; nothing else of the block is read.

    >>> exif_orientation(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    6
    """
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(bytes(block[:2]))
    if order is None or len(block) < 10:
        return 1
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    try:
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * min(count, 1_000), 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == _ORIENTATION:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), block, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def xmp_orientation(block: bytes) -> int:
    """The orientation in an XMP block, where Exif says none."""
    found = _XMP_ORIENTATION.search(block[:1_000_000])
    return int(found[1]) if found else 1


def _too_many(blocks: str) -> ValueError:
    return ValueError(f"it has more than {MAX_BLOCKS:,} {blocks} before its pixels")


def _jpeg(data: bytes, frame: int) -> FirstImage:
    kept, exif, xmp, place = [b"\xff\xd8"], b"", b"", 2
    for _ in range(MAX_BLOCKS):
        found = _JPEG_MARKER.search(data, place)
        if found is None:
            break
        marker, start = found[1][0], found.start(1) - 1  # of several FF the last one
        if marker in _JPEG_WITHOUT_LENGTH:
            place = found.end()
            continue
        if marker == _JPEG_SCAN:
            end = data.find(b"\xff\xd9", start)
            scans = data.count(b"\xff\xda", start, end if end > 0 else len(data))
            if scans > MAX_SCANS:
                raise ValueError(f"it has {scans:,} scans, and {MAX_SCANS} are read")
            rest = data if not exif and not xmp and sum(map(len, kept)) == start else b"".join([*kept, data[start:]])
            return FirstImage(rest, exif_orientation(exif) if exif else xmp_orientation(xmp))
        place = found.end() + struct.unpack_from(">H", data, found.end())[0]
        segment = data[found.end() + 2 : place]
        if marker == _JPEG_APP1 and segment.startswith(b"Exif\0\0") and not exif:
            exif = segment
        elif marker == _JPEG_APP1 and not xmp:
            xmp = segment
        if marker not in _JPEG_DROPPED:
            kept.append(data[start:place])
    else:
        raise _too_many("segments")
    return FirstImage(data)


def _png(data: bytes, frame: int) -> FirstImage:
    needed = _PNG_KEPT | (_PNG_FRAMES if frame else frozenset())
    kept, exif, xmp, place, span = [data[:8]], b"", b"", 8, 8
    for _ in range(MAX_BLOCKS):
        if place + 8 > len(data):
            break
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if name == b"IEND":
            kept.append(data[span:end])
            break
        if name not in needed:
            if name == b"eXIf":
                exif = exif or data[place + 8 : end - 4]
            elif name == b"iTXt" and data.startswith(b"XML:com.adobe.xmp\0\0", place + 8):
                xmp = xmp or data[place + 8 : min(end, place + 1_000_000)]
            kept.append(data[span:place])
            span = end
        place = end
    else:
        raise _too_many("chunks")
    if place + 8 > len(data):
        kept.append(data[span:])
    return FirstImage(b"".join(kept), exif_orientation(exif) if exif else xmp_orientation(xmp))


def _gif(data: bytes, frame: int) -> FirstImage:
    flags = data[10]
    place = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    kept, steps = [data[:place]], 0
    while found := _GIF_BLOCK.search(data, place):
        start = found.start()
        if found[0] != b"!":  # an image, or the end
            return FirstImage(b"".join([*kept, data[start:]]))
        place = start + 2
        while size := data[place]:
            place += 1 + size
            steps += 1
        place += 1
        steps += 1
        if steps > MAX_BLOCKS:
            raise _too_many("blocks")
        if data[start + 1] == 0xF9:  # which colour is transparent
            kept.append(data[start:place])
    return FirstImage(data)


def _tiff(data: bytes, frame: int) -> FirstImage:
    order = "<" if data.startswith(b"II") else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    number, entry_size, inline = ("Q", 20, 8) if big else ("I", 12, 4)
    (start,) = struct.unpack_from(order + number, data, 8 if big else 4)
    head = order + ("Q" if big else "H")
    (count,) = struct.unpack_from(head, data, start)
    for _ in range(frame):
        (start,) = struct.unpack_from(order + number, data, start + struct.calcsize(head) + count * entry_size)
        if not start:
            raise ValueError(f"it has no frame {frame}")
        (count,) = struct.unpack_from(head, data, start)
    if count > MAX_BLOCKS:
        raise _too_many("entries")
    first, kept, num_bytes = start + struct.calcsize(head), [], 0
    for place in range(first, first + count * entry_size, entry_size):
        tag, kind, values = struct.unpack_from(f"{order}HH{number}", data, place)
        if tag in _TIFF_KEPT and kind in _TIFF_SIZES:
            size = values * _TIFF_SIZES[kind]
            num_bytes += size if size > inline else 0
            kept.append(data[place : place + entry_size])
    if num_bytes > MAX_DIRECTORY_BYTES:
        raise ValueError(f"its directory has values of {num_bytes:,} bytes, and {MAX_DIRECTORY_BYTES:,} are read")
    directory = struct.pack(head, len(kept)) + b"".join(kept) + struct.pack(order + number, 0)  # no further image
    if start + len(directory) > len(data):
        return FirstImage(data)
    first = struct.pack(order + number, start)
    place = 8 if big else 4
    kept_data = [data[:place], first, data[place + len(first) : start], directory, data[start + len(directory) :]]
    return FirstImage(b"".join(kept_data))


def _boxes(data: bytes) -> FirstImage:
    """AVIF and JPEG 2000: boxes are counted; of AVIF, the item with Exif is given a name that nobody looks for."""
    place, end = 0, len(data)
    for _ in range(MAX_BLOCKS):
        if place + 16 > end:
            return FirstImage(data)
        length, name = struct.unpack_from(">I4s", data, place)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, place + 8)
        after = place + length if length else end
        if name == b"meta":
            return FirstImage(data[:place] + data[place:after].replace(b"Exif", b"none") + data[after:])
        if name == b"jp2h":
            place, after = place, place + 8  # what is in it counts, too
        if after <= place:
            return FirstImage(data)
        place = after
    raise _too_many("boxes")


_WALKS: tuple[tuple[bytes, Callable[[bytes, int], FirstImage]], ...] = (
    (b"\xff\xd8\xff", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"GIF8", _gif),
    (b"II", _tiff),
    (b"MM", _tiff),
)
