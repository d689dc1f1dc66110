"""The index files that were written by this user on this machine, known by their checksums.

An index file is read by compiled code that believes what it reads. A checksum in a manifest says that a file is
whole, not who made it: its publisher writes both. So the checksum of every index written here is noted in the user's
cache folder, and only such files are loaded without being asked for.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path


logger = logging.getLogger(__name__)


def _trust_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_ravlm" / "written_here"


def trust_file(sha256: str) -> None:
    """Notes that a file with this checksum was written here; without a writable cache folder it stays a stranger's."""
    try:
        _trust_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        (_trust_folder() / sha256).touch(mode=0o600)
    except OSError as error:
        logger.debug("%s: the index cannot be noted as written here: %s", _trust_folder(), error)


def is_trusted(sha256: str) -> bool:
    """Whether a file with this checksum was written here."""
    return bool(re.fullmatch("[0-9a-f]{64}", sha256)) and (_trust_folder() / sha256).is_file()
