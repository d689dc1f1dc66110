"""What this user noted on this machine: empty files in his cache folder, whose names say what is noted.

Where several people share a cache (`HF_HOME`), each has a folder of notes, which nobody else can write.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from pathlib import Path


def add_note(kind: str, name: str, seconds: float | None = None) -> None:
    """Notes something.

    Args:
        kind: Of the notes, such as `"written_here"`; the name of their folder.
        name: What is noted, such as a checksum.
        seconds: How long notes of this kind hold: older ones are removed. `None`: for ever.

    Raises:
        OSError: If there can be no such folder of ours.
    """
    folder = _folder(kind)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if seconds is not None:
        for other in folder.iterdir():
            with suppress(OSError):
                if _age(other) > seconds:
                    other.unlink()
    (folder / name).touch(mode=0o600)


def has_note(kind: str, name: str, seconds: float | None = None) -> bool:
    """Whether we noted this, within the last seconds; arguments as of `add_note`."""
    folder = _folder(kind)
    try:
        note = folder / name
        return _is_ours(folder) and note.is_file() and (seconds is None or 0 <= _age(note) <= seconds)
    except (OSError, ValueError):
        return False


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _folder(kind: str) -> Path:
    """Our folder of notes: another one where somebody else has made the first."""
    from huggingface_hub import constants

    first = Path(constants.HF_HOME) / "hf_ravlm" / kind
    if os.name == "nt" or _is_ours(first):
        return first
    return Path(constants.HF_HOME) / f"hf_ravlm-{os.geteuid()}" / kind


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can put notes there; also of a folder that is not there yet."""
    try:
        status = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # in a folder that we may not look into
        return False
    return os.name == "nt" or (status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
