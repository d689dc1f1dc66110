"""What a path leads to, before it is opened: a pipe or a device would block, or never end."""

from __future__ import annotations

import errno
import os
import stat


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def other_than_file(path: str | bytes | os.PathLike) -> str | None:
    """What stands at a path where a file is expected: `"a folder"`, `"a named pipe"`, `"a loop of links"`, ...

    Returns:
        `None` for a file, and where nothing stands or it cannot be told: opening it says why.

    Example:

    >>> other_than_file(os.curdir)
    'a folder'
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return "a loop of links" if error.errno == errno.ELOOP else None
    except ValueError:  # a NUL character in the path
        return None
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), None)
