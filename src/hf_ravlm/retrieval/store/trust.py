"""The index files that were written by this user on this machine, known by their checksums.

An index file is read by compiled code that believes what it reads. A checksum in a manifest says that a file is
whole, not who made it: its publisher writes both. So the checksum of every index written here is noted in the user's
cache folder, and only such files are loaded without being asked for.
"""

from __future__ import annotations

import logging
import re

from ...saving.notes import add_note, has_note


logger = logging.getLogger(__name__)

_KIND = "written_here"


def trust_file(sha256: str) -> None:
    """Notes that a file with this checksum was written here; without a cache folder of ours it stays a stranger's."""
    try:
        add_note(_KIND, sha256)
    except OSError as error:
        logger.warning(
            "That you wrote this index cannot be noted (%s), so it will be built again from the vectors whenever it "
            "is opened, unless you pass `allow_foreign_index=True`.",
            error,
        )


def is_trusted(sha256: str) -> bool:
    """Whether a file with this checksum was written here."""
    return bool(re.fullmatch("[0-9a-f]{64}", sha256)) and has_note(_KIND, sha256)
