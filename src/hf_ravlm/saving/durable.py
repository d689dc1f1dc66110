"""Files that survive a power cut: written under a new name, flushed, renamed, and their folder flushed as well.

A rename is atomic, but neither the new content nor the new name is on the disk before `fsync` of the file and of the
folder that holds it. An `fsync` that fails is never repeated: the kernel may have dropped the data.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import KnowledgeBaseLockedError


TEMPORARY_SUFFIX = ".tmp"
_LOCK_POLL_SECONDS = 0.05
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def make_folder(folder: Path) -> None:
    """Creates a folder and its missing parents, durably."""
    for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        with suppress(FileExistsError):
            os.mkdir(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder."""
    if os.name != "nt":  # Windows cannot open a folder and needs no such flush.
        _sync(folder, os.O_RDONLY)


def sync_file(path: Path) -> None:
    """Flushes the content of a file."""
    _sync(path, os.O_RDWR)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """Gives a new empty file in a folder, and removes it at the end unless it was renamed."""
    path = folder / f"{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    # Mode 0666 less umask, as any file: what is renamed keeps it, and a shared knowledge base is read by others.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield path
    finally:
        with suppress(OSError):
            os.unlink(path)


def create_file(path: Path, data: bytes) -> None:
    """Writes a file that must not exist yet, and flushes its content."""
    _write(path, data, os.O_CREAT | os.O_EXCL)


def replace_file(path: Path, data: bytes) -> None:
    """Replaces the content of a file in one step: every reader sees the old bytes or the new ones."""
    with temporary_file(path.parent) as temporary:
        _write(temporary, data)
        os.replace(temporary, path)
    sync_folder(path.parent)


def _write(path: Path, data: bytes, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_file(write: Callable[[Path], None], folder: Path, name_of: Callable[[str], Path]) -> tuple[Path, str, int]:
    """Writes a file in one step, under a name that may depend on its content.

    Args:
        write: Fills the (empty) file at a path.
        folder: Where the temporary file stands; on the same disk as the final one.
        name_of: Maps the SHA-256 of the content, in hexadecimal, to the final path.

    Returns:
        The final path, the SHA-256, and the size in bytes.
    """
    with temporary_file(folder) as temporary:
        mode = temporary.stat().st_mode
        with disk_errors(temporary):
            write(temporary)
        os.chmod(temporary, mode)  # safetensors puts a file of its own there, which only its owner may read
        sync_file(temporary)
        sha256, num_bytes = sha256_of(temporary), temporary.stat().st_size
        final = name_of(sha256)
        make_folder(final.parent)
        # Same name, same content: replacing also heals a damaged file.
        os.replace(temporary, final)
        sync_folder(final.parent)
    return final, sha256, num_bytes


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what other libraries raise when a disk refuses to be written (RuntimeError, ...) into `OSError`.

    >>> with disk_errors("a.faiss"):
    ...     raise RuntimeError("write error: No space left on device")
    Traceback (most recent call last):
        ...
    OSError: [Errno 28] No space left on device: 'a.faiss'
    """
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        found = re.search(r"\bcode: (\d+)", str(error))
        number = int(found[1]) if found else next((n for n in _DISK_ERRORS if os.strerror(n) in str(error)), None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Reads a small file; a pipe or a device in its place, which would never end, is refused.

    Raises:
        OSError: If it cannot be read, is no regular file, or has more bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes:,} bytes", os.fspath(path))
    return data


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, even if this process is killed: a child waits for its end and removes it."""
    folder = tempfile.mkdtemp(prefix="ravlm-")
    watcher = None
    with suppress(OSError):  # where there is no shell, the folder is removed at the end alone
        command = ["/bin/sh", "-c", 'cat > /dev/null; rm -rf -- "$0"', folder]
        null = subprocess.DEVNULL
        watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if watcher is not None:
            watcher.communicate()


def sha256_of(path: Path, on_read: Callable[[int], Any] | None = None) -> str:
    """The SHA-256 of a file's content, in hexadecimal; `on_read` is told the bytes of each block."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if on_read is not None:
                on_read(len(block))
    return digest.hexdigest()


@contextmanager
def exclusive_lock(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Holds the lock of a single writer; the kernel frees it when the process dies. The file stays, and stays empty.

    Raises:
        KnowledgeBaseLockedError: If another writer holds the lock all that time, or the disk knows no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + timeout_seconds
        while not _lock_or_refuse(descriptor, path):
            if time.monotonic() >= deadline:
                raise KnowledgeBaseLockedError(
                    f"{path.parent}: another process is writing this knowledge base (waited {timeout_seconds:g} s). "
                    "Try again when it has finished, or save into another folder."
                )
            time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)  # which frees the lock


def _lock_or_refuse(descriptor: int, path: Path) -> bool:
    try:
        return try_lock(descriptor)
    except OSError as error:
        raise KnowledgeBaseLockedError(
            f"{path.parent}: this disk offers no file locks ({error}), so two writers could spoil each other's work. "
            "Save to a local folder and copy it."
        ) from error


def try_lock(descriptor: int, shared: bool = False) -> bool:
    """Locks an open file until it is closed, unless another process holds it against us; returns whether it did.

    Raises:
        OSError: If the disk knows no locks.
    """
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
