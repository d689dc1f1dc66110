"""File names found in data that may be opened: relative ones that stay inside their folder.

A table row, a manifest or a downloaded folder is data written by somebody else; `../../secret.png` in it must not
reach the disk.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import InvalidInputError, UnsafeInputError


_MAX_NAME_LENGTH = 255


def safe_relpath(name: str) -> str:
    r"""Returns a relative path in POSIX form, or refuses a name that could lead out of its folder.

    The rules of POSIX and Windows are applied on every system, so that a folder is as safe where it is read as where
    it was written.

    Args:
        name: A relative path; `\` counts as `/`.

    Returns:
        The path with `/` between its parts.

    Raises:
        UnsafeInputError: If the name is empty, absolute, longer than 255 characters, or has a `..` part, a drive or
            a NUL character.

    Example:

    ```python
    >>> from hf_ravlm.saving.safe_paths import safe_relpath
    >>> safe_relpath("birds/robin.jpg")
    'birds/robin.jpg'
    >>> safe_relpath("../x.png")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    hf_ravlm.errors.UnsafeInputError: '../x.png' is not a safe file name: it has a '..' part. ...

    ```
    """
    if reason := _reason_to_refuse(name):
        raise UnsafeInputError(
            f"{name[:200]!r} is not a safe file name: {reason}. Expected a relative path that stays inside its folder."
        )
    return str(PurePosixPath(name.replace("\\", "/")))


def _reason_to_refuse(name: str) -> str | None:
    parts = name.replace("\\", "/").split("/")
    if not any(part not in ("", ".") for part in parts):
        return "it is empty"
    if "\0" in name:
        return "it holds a NUL character"
    if len(name) > _MAX_NAME_LENGTH:
        return f"it is longer than {_MAX_NAME_LENGTH} characters"
    if ".." in parts:
        return "it has a '..' part"
    if parts[0] == "" or any(PureWindowsPath(part).drive or PureWindowsPath(part).root for part in parts):
        return "it is absolute or has a drive"
    return None


def resolve_inside(folder: Path, name: str) -> Path:
    """Returns `folder / name` after checking that neither the name nor a link leads out of the folder.

    A snapshot folder of the Hugging Face cache consists of links to the `blobs` folder beside it; those are allowed.

    The path need not exist.

    Raises:
        UnsafeInputError: If the path leaves the folder, or its name is none that `safe_relpath` takes.
    """
    path = folder / safe_relpath(name)
    try:
        root, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError before Python 3.13
        raise UnsafeInputError(f"{name!r} in {folder} is a loop of links. Copy the file itself there.") from error
    roots = [root]
    for revision in (root, *root.parents):
        # <cache>/models--owner--name/snapshots/<revision>/... beside <cache>/models--owner--name/blobs
        if revision.parent.name == "snapshots" and (revision.parent.parent / "blobs").is_dir():
            roots.append(revision.parent.parent / "blobs")
    if not any(target.is_relative_to(allowed) for allowed in roots):
        raise UnsafeInputError(
            f"{name!r} in {folder} is a link that leads out of the folder. Copy the file itself into the folder."
        )
    return path


def at_home(path: Any) -> Any:
    """A path in which `~` stands for the home folder, as in a shell; anything else, such as a name, as it is.

    >>> at_home("owner/name"), at_home("~/base") == os.path.join(os.path.expanduser("~"), "base")
    ('owner/name', True)
    """
    is_path = isinstance(path, (str, os.PathLike)) and str(path).startswith("~")
    return os.path.expanduser(os.fspath(path)) if is_path else path


def absolute_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder as an absolute path, which stays right when the process goes to another one.

    Raises:
        InvalidInputError: If its name is not UTF-8: the libraries that write files cannot take it.
    """
    path = Path(at_home(folder)).absolute()
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{os.fspath(path)!r}: the name of this folder is not UTF-8, and cannot be handed to the libraries that "
            "read and write files. Rename it, or choose another one."
        ) from error
    return path
