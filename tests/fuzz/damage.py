"""What can become of the files of a folder: bits, lengths, JSON values, links, pipes, files in each other's places."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import choose


EXTREMES: list[Any] = [0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, float("nan"), None, True, "", "x" * 10_000]
EXTREMES += ["../../etc/passwd", "\ud800", [], {}, [[]], "1", [1] * 1000, {"a": {"a": {}}}]


def harm(folder: Path, random: np.random.Generator, free: tuple[str, ...] = ()) -> str:
    """Does one kind of damage to one file of a folder, by chance; returns its name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in free)
    path = choose(random, paths)
    data = path.read_bytes()
    match int(random.integers(11)):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(b"")
        case 2:
            path.write_bytes(data[: int(random.integers(len(data) + 1))])
        case 3:
            path.write_bytes(data + random.bytes(int(random.integers(1, 100))))
        case 4 | 5:
            path.write_bytes(with_flipped_bits(data, random))
        case 6:
            path.unlink()
            path.symlink_to(choose(random, [path.name, "nowhere", "/dev/null", choose(random, paths)]))
        case 7:
            path.unlink()
            os.mkfifo(path)
        case 8:
            path.unlink()
            path.mkdir()
        case 9:
            other = choose(random, paths)
            content = other.read_bytes() if other != path else b"{}"
            other.write_bytes(data)
            path.write_bytes(content)
        case 10:
            path.write_bytes(with_other_json(data, random))
    return path.relative_to(folder).as_posix()


def with_flipped_bits(data: bytes, random: np.random.Generator) -> bytes:
    new = bytearray(data or b"\0")
    for _ in range(int(choose(random, [1, 1, 2, 20]))):
        new[int(random.integers(len(new)))] ^= 1 << int(random.integers(8))
    return bytes(new)


def with_other_json(data: bytes, random: np.random.Generator) -> bytes:
    """JSON with one value replaced; other files lose a piece."""
    try:
        value = json.loads(data)
        places = list(_places(value))
        holder, key = choose(random, places)
    except (ValueError, IndexError):
        start = int(random.integers(len(data) + 1))
        return data[:start] + data[start + int(random.integers(1, 64)) :]
    holder[key] = choose(random, EXTREMES)
    return json.dumps(value).encode()


def _places(value):
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
