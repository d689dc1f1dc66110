"""Leases of versions that are being read: their files are not removed.

A reader holds a shared lock on the manifest of its version; a writer that removes old ones asks for an exclusive lock
first. The kernel frees a lock when its process ends, however it ends. Where a disk has no locks there are no leases; a
reader that then finds a file gone reads again. A forked child would hold the locks of its parent for ever: it gives
them up at its start, and goes on with what is in memory.
"""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path
from typing import Any

from ...saving.durable import try_lock


_HELD: weakref.WeakSet[Lease] = weakref.WeakSet()


class Lease:
    """A file that must stay, until `release` or until this object is gone.

    A copy of it, in another process or by `copy`, holds nothing.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._finalizer = None if descriptor is None else weakref.finalize(self, os.close, descriptor)
        _HELD.add(self)

    def release(self) -> None:
        """Gives the file up; may be called again."""
        if self._finalizer is not None:
            self._finalizer()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Lease, ())


def _release_all() -> None:
    for lease in list(_HELD):
        lease.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_all)


def take_lease(path: Path) -> Lease:
    """Keeps a file from being removed by `remove_unless_leased`.

    Raises:
        FileNotFoundError: If there is no such file, or it is being removed.
        OSError: If it is not a regular file, or may not be read.
    """
    descriptor = _open(path)
    lease = Lease(descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        lease.release()
        raise OSError(f"{path} is not a regular file.")
    if not _lock(descriptor, shared=True) or os.fstat(descriptor).st_nlink == 0:
        lease.release()
        raise FileNotFoundError(f"{path} is being removed.")
    return lease


def remove_unless_leased(path: Path) -> bool:
    """Removes a file that nobody reads; returns whether it is gone."""
    try:
        descriptor = _open(path)
    except FileNotFoundError:
        return True
    except OSError:  # nobody can read it, so nobody holds it
        path.unlink()
        return True
    try:
        if not _lock(descriptor, shared=False):
            return False
        if os.name != "nt":
            path.unlink()
            return True
    finally:
        os.close(descriptor)
    try:
        path.unlink(missing_ok=True)
        return True
    except PermissionError:  # Windows refuses to remove a file that is open anywhere, which is a lease of its own
        return False


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe must not make us wait for its writer


def _lock(descriptor: int, shared: bool) -> bool:
    """As `try_lock`, but a disk without locks grants everything."""
    try:
        return os.name == "nt" or try_lock(descriptor, shared)
    except OSError:
        return True
