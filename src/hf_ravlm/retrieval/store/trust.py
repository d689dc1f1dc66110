"""The index files that were written by this user on this machine, known by their checksums.

An index file is read by compiled code that believes what it reads. A checksum in a manifest says that a file is
whole, not who made it: its publisher writes both. So the checksum of every index written here is noted in the user's
cache folder, and only such files are loaded without being asked for. Where several people share a cache (`HF_HOME`),
each has a folder of notes, which nobody else can write.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from pathlib import Path


logger = logging.getLogger(__name__)


def _trust_folder() -> Path:
    """Our folder of notes: another one where somebody else has made the first."""
    from huggingface_hub import constants

    first = Path(constants.HF_HOME) / "hf_ravlm" / "written_here"
    if os.name == "nt" or _is_ours(first):
        return first
    return Path(constants.HF_HOME) / f"hf_ravlm-{os.geteuid()}" / "written_here"


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can put notes there; also of a folder that is not there yet."""
    try:
        status = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # in a folder that we may not look into
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def trust_file(sha256: str) -> None:
    """Notes that a file with this checksum was written here; without a cache folder of ours it stays a stranger's."""
    folder = _trust_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / sha256).touch(mode=0o600)
    except OSError as error:
        logger.warning(
            "That you wrote this index cannot be noted (%s), so it will be built again from the vectors whenever it "
            "is opened, unless you pass `allow_foreign_index=True`.",
            error,
        )


def is_trusted(sha256: str) -> bool:
    """Whether a file with this checksum was written here."""
    folder = _trust_folder()
    try:
        return bool(re.fullmatch("[0-9a-f]{64}", sha256)) and _is_ours(folder) and (folder / sha256).is_file()
    except OSError:
        return False
