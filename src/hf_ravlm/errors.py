"""The errors of the project: what came, what was expected, what to do. All that is raised on purpose is here."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class RavlmError(Exception):
    """Base of every error that `hf_ravlm` raises on purpose."""

    def __str__(self) -> str:
        r"""The message; what no terminal can show, such as a byte of a file name that is no text, as `\udcff`."""
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class UnsafeInputError(RavlmError, ValueError):
    """An input cannot be used safely: a broken or oversized image, a path out of its folder, a vector with NaN."""


class InvalidInputError(RavlmError, ValueError):
    """An argument is wrong: an empty question, duplicate ids, `k < 1`, a passage without text and image."""


class KnowledgeBaseMismatchError(RavlmError, ValueError):
    """The knowledge base was built by another encoder than the one that now asks it."""


class KnowledgeBaseCorruptError(RavlmError, OSError):
    """A stored knowledge base is damaged or incomplete."""


class KnowledgeBaseLockedError(RavlmError, OSError):
    """Another process is writing this knowledge base."""


class KnowledgeBaseNotFoundError(RavlmError, FileNotFoundError):
    """There is no stored knowledge base where one was expected."""


class KnowledgeBaseIncompleteError(KnowledgeBaseNotFoundError, KnowledgeBaseCorruptError):
    """A knowledge base that cannot be read yet, or no longer: its build was stopped, or its file CURRENT is gone."""


class StorageError(RavlmError, OSError):
    """A folder may not be read or written by this user, or its disk is full; what lies there is as it was."""


class HubUnavailableError(RavlmError, ConnectionError):
    """The Hub cannot be reached, or refused to answer; what lies on this machine is as it was."""


class RemoteServerError(RavlmError, ConnectionError):
    """A server that reads or encodes for us cannot be reached, is too slow, broke off, or answers nonsense."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """What is refused inside is named: of a batch, the one that cannot be used.

    >>> with naming("the image of question 3"):
    ...     raise UnsafeInputError("it is empty.")
    Traceback (most recent call last):
    hf_ravlm.errors.UnsafeInputError: the image of question 3: it is empty.
    """
    try:
        yield
    except (InvalidInputError, UnsafeInputError) as error:
        raise type(error)(f"{what}: {error}") from error


_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def storage_advice(error: OSError) -> str:
    """What to do about a disk that refuses; empty for other errors.

    >>> storage_advice(OSError(errno.EROFS, os.strerror(errno.EROFS)))
    'Ask its owner for the right, or use a folder of your own.'
    """
    if error.errno in _NO_RIGHT:
        return "Ask its owner for the right, or use a folder of your own."
    if error.errno == errno.ENOTDIR:
        return "A file is where a folder was expected: name another place."
    return "Make room on this disk, or use another one." if error.errno in _NO_ROOM else ""


@contextmanager
def storage_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what a disk refuses into one line that names the folder and says what to do.

    Args:
        folder: What is read, or written in steps that leave it as it was until the last.

    Raises:
        StorageError: In the place of an `OSError` for want of rights or room; others pass.

    >>> with storage_errors("birds"):
    ...     raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "birds/LOCK")
    Traceback (most recent call last):
    hf_ravlm.errors.StorageError: birds: No space left on device (LOCK). Make room on this disk, or use another one.
    """
    try:
        yield
    except RavlmError:
        raise
    except OSError as error:
        advice = storage_advice(error)
        if not advice:
            raise
        root, place = os.fspath(folder), os.fsdecode(error.filename) if error.filename is not None else ""
        inside = os.path.relpath(place, root) if place.startswith(root + os.sep) else place
        told = StorageError(f"{root}: {error.strerror}{f' ({inside})' * (inside not in ('', root))}. {advice}")
        told.errno = error.errno
        raise told from error
