"""The manifest of a saved folder: the checksum of every file, written last, and compared when the folder is loaded.

A flipped bit in the weights, an edited config, or files of two versions beside each other load without a word and
answer a little worse. `ravlm_manifest.json` lists what belongs together; a folder without one is loaded as it is.
Files that it does not list (a card, an adapter of PEFT, a knowledge base, which has checksums of its own) are free.

The checksum is XXH3-128 of the XXH3-128 of every 64 MB: it finds damage, at the speed of memory and on several cores,
but it is no signature. Weights that were found whole are not read again for a day, as long as nobody writes to their
file: whoever loads a model again and again does not pay for it again and again.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import stat
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import starmap
from pathlib import Path
from typing import Any, Literal

import xxhash

from ..errors import UnsafeInputError
from .durable import read_regular
from .notes import add_note, has_note
from .safe_paths import safe_relpath


MANIFEST = "ravlm_manifest.json"
SWITCH = "HF_RAVLM_VERIFY"  # in the environment: 0, and nothing is compared; "always", and whatever is noted
_FORMAT = 1
_MAX_BYTES = 8_000_000
_WEIGHTS = ".safetensors"
_BLOCK = 1 << 26
_FREE = ("README.md", MANIFEST)  # people edit the card
_NOTED, _NOTED_SECONDS = "found_whole", 86_400
_NOTED_BYTES = 1 << 26  # smaller files are read in no time
_SETTLED_SECONDS = 2  # of a file that was written just now, a second write may leave the time as it is

Entries = dict[str, dict[str, Any]]


def entries_of(folder: Path, part: str) -> Entries:
    """What a manifest says of all files below a folder; `part` is whose they are: `"model"`, `"processor"`, ..."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = {name: path for name, path in paths.items() if name not in _FREE}
    sums = checksums(paths.values())
    return {name: {"part": part, "bytes": path.stat().st_size, "xxh3_128": sums[path]} for name, path in paths.items()}


def manifest_text(entries: Mapping[str, Any]) -> str:
    """The content of a manifest."""
    return json.dumps({"format": _FORMAT, "files": dict(sorted(entries.items()))}, indent=1) + "\n"


def read_entries(folder: Path) -> Entries:
    """What the manifest of a folder lists; nothing without one, or if it is of a later format.

    Raises:
        UnsafeInputError: If it cannot be read.
    """
    try:
        data = read_regular(folder / MANIFEST, _MAX_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnsafeInputError(f"{folder / MANIFEST}: damaged ({error.strerror}). {_remedy(folder)}") from error
    return parse_entries(data, folder)


def parse_entries(data: bytes, folder: Path | str) -> Entries:
    """What a manifest lists; errors as `read_entries`."""
    try:
        manifest = json.loads(data)
        if isinstance(manifest["format"], int) and manifest["format"] > _FORMAT:
            return {}
        entries: Entries = manifest["files"]
        for name, entry in entries.items():
            if safe_relpath(name) != name or not isinstance(entry["part"], str) or not isinstance(entry["bytes"], int):
                raise ValueError(f"it lists {name[:80]!r}")
            if not re.fullmatch("[0-9a-f]{32}", entry["xxh3_128"]):
                raise ValueError("it has a checksum of another form")
        return entries
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)[:200]
        raise UnsafeInputError(f"{folder}: its {MANIFEST} is damaged ({reason}). {_remedy(folder)}") from error


def check_files(
    folder: Path,
    parts: Collection[str],
    variant: str | None = None,
    may_lack: bool = False,
    which: Literal["all", "weights", "settings"] = "all",
) -> None:
    """Compares the files of some parts with the manifest of their folder.

    Args:
        folder: A saved folder, or the snapshot of a repository.
        parts: Such as `("model", "config")`.
        variant: Of the weights; those of other variants are not read.
        may_lack: Whether files may not be there (yet), as in a snapshot, into which only what is needed comes.

        which: Weights alone, or all but weights.

    Raises:
        UnsafeInputError: If a file is missing, or is not as it was written.
    """
    if os.environ.get(SWITCH, "1").lower() in ("0", "false", "no", "off"):
        return
    wanted = {
        name: entry
        for name, entry in read_entries(folder).items()
        if entry["part"] in parts
        and which in ("all", "weights" if name.endswith(_WEIGHTS) else "settings")
        and not (name.endswith(_WEIGHTS) and _variant_of(name) not in (None, variant))
    }
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing and not may_lack:
        raise UnsafeInputError(f"{folder}: {missing[0]} is missing (as {MANIFEST} says). {_remedy(folder)}")
    there = {name: folder / name for name in wanted if name not in missing}
    changed = [name for name, path in there.items() if _size(path) != wanted[name]["bytes"]]
    if not changed:
        expected = {path: wanted[name]["xxh3_128"] for name, path in there.items()}
        altered = _altered(expected)
        changed = [name for name, path in there.items() if path in altered]
    if changed:
        first = sorted(changed)[0]
        what = f"a file of weights ({first})" if first.endswith(_WEIGHTS) else first
        others = f" (and {len(changed) - 1} others)" if len(changed) > 1 else ""
        raise UnsafeInputError(
            f"{folder}: {what} is damaged, or was changed since the folder was saved, and was not loaded{others}. "
            f"{_remedy(folder)}"
        )


def _altered(expected: Mapping[Path, str]) -> set[Path]:
    """The files whose checksum is not the expected one; those that were found whole lately are not read again."""
    notes = {path: _note_of(path, digest) for path, digest in expected.items()}
    if os.environ.get(SWITCH, "").lower() == "always":
        known = set()
    else:
        known = {path for path, note in notes.items() if note and has_note(_NOTED, note, _NOTED_SECONDS)}
    sums = checksums(expected.keys() - known)
    for path, digest in sums.items():
        note = notes[path]
        if note and digest == expected[path] and note == _note_of(path, digest):  # nobody wrote to it meanwhile
            with suppress(OSError):  # without a folder for notes it is read again
                add_note(_NOTED, note, _NOTED_SECONDS)
    return {path for path, digest in sums.items() if digest != expected[path]}


def _note_of(path: Path, digest: str) -> str | None:
    """The name of the note that a file has this checksum; `None` for one that is small or was written just now."""
    status = path.stat()
    settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS
    if status.st_size < _NOTED_BYTES or not settled:
        return None
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest)
    return xxhash.xxh3_128_hexdigest(repr(state).encode())


def _remedy(folder: Path | str) -> str:
    return (
        "Take it from a copy, download it again, or save it again. If the change is yours, accept it: "
        f'`hf_ravlm.saving.checksums.accept_changes("{folder}")`; or load with {SWITCH}=0 in the environment.'
    )


def accept_changes(folder: str | os.PathLike[str]) -> list[str]:
    """Writes the manifest of a folder anew for what its files are now; returns the names of those that had changed."""
    root = Path(folder)
    try:
        before = read_entries(root)
    except UnsafeInputError:
        before = {}
    now = entries_of(root, "model")
    kept = {name: {**now[name], "part": entry["part"]} for name, entry in before.items() if name in now}
    (root / MANIFEST).write_text(manifest_text(kept), encoding="utf-8")
    return sorted(name for name in before if kept.get(name) != before[name])


def joined_manifest(earlier: bytes | None, new: Mapping[str, Any], deleted: Collection[str]) -> bytes | None:
    """The manifest of a repository after a commit; `None` if it has none, or stays as it is.

    Args:
        earlier: The one that is there.
        new: The files that come, by name: paths or contents.
        deleted: The names of those that go.
    """
    try:
        before = {} if earlier is None else parse_entries(earlier, MANIFEST)
    except UnsafeInputError:  # damaged: it goes
        before = {}
    come = new.get(MANIFEST)
    added = (
        {} if come is None else parse_entries(come if isinstance(come, bytes) else Path(come).read_bytes(), MANIFEST)
    )
    kept = {name: entry for name, entry in before.items() if name not in new and name not in deleted}
    return manifest_text(kept | added).encode() if added or kept != before else None


def _variant_of(name: str) -> str | None:
    """The variant of a file of weights.

    >>> _variant_of("model.safetensors"), _variant_of("model.fp16-00001-of-00002.safetensors")
    (None, 'fp16')
    """
    match = re.fullmatch(r"[^.]+\.([^.]+?)(-\d{5}-of-\d{5})?\.safetensors", name)
    return match[1] if match else None


def _size(path: Path) -> int:
    status = path.stat()
    return status.st_size if stat.S_ISREG(status.st_mode) else -1  # a pipe or a device would never end


def checksums(paths: Collection[Path]) -> dict[Path, str]:
    """The checksums of files, in hexadecimal, by as many threads as there are cores."""
    starts = [(path, start) for path in paths for start in range(0, path.stat().st_size, _BLOCK)]
    if len(starts) < 2:
        digests = list(starmap(_block_digest, starts))
    else:
        with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1, 8)) as pool:
            digests = list(pool.map(_block_digest, *zip(*starts, strict=True)))
    joined = {path: xxhash.xxh3_128() for path in paths}
    for (path, _), digest in zip(starts, digests, strict=True):
        joined[path].update(digest)
    return {path: digest.hexdigest() for path, digest in joined.items()}


def _block_digest(path: Path, start: int) -> bytes:
    # Mapped, as the weights are when they are loaded: reading would copy every byte once more.
    with open(path, "rb") as file:
        size = min(_BLOCK, os.fstat(file.fileno()).st_size - start)
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start) as block:
            return xxhash.xxh3_128_digest(block)
