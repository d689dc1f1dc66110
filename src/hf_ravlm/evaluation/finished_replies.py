"""A file that grows by one JSON line per reply, so that an evaluation that was killed goes on where it stopped.

The first line holds the settings. Lines are appended and forced to the disk batch by batch; a last line that a kill
cut short is dropped when the file is opened again. Other settings or a changed question are errors: a file never mixes
two runs.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from .questions import Question, Reply


logger = logging.getLogger(__name__)

_FORMAT = 2


@dataclass(frozen=True)
class FinishedReply:
    """One reply, the arm that gave it, the id and digest of its question, and the seconds it took."""

    arm: str
    id: str
    digest: str
    reply: Reply
    seconds: float


class FinishedReplies:
    """The replies of a run, in memory and, with a path, in a file.

    Args:
        path (`Path`, *optional*): The file; made if it is not there. `None` keeps nothing.
        settings (`dict`): Whatever decides what replies come: JSON values. A file of other settings is not continued.

    Raises:
        InvalidInputError: The file is of other settings, damaged, or no file of replies.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._replies: dict[tuple[str, str], FinishedReply] = {}
        if path is None:
            return
        head = {"format": _FORMAT, "settings": json.loads(json.dumps(settings))}
        lines = _whole_lines(path) if path.exists() else []
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            _append(path, [head])
            return
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                if number == 1:
                    if record["settings"] == head["settings"]:
                        continue
                    raise InvalidInputError(
                        f"{path} holds replies of other settings: {json.dumps(record['settings'])} instead of "
                        f"{json.dumps(head['settings'])}. Pass another folder, or the same settings to go on."
                    )
                fields = record.pop("reply")
                fields |= {name: tuple(fields[name]) for name in ("evidence_ids", "evidence_texts")}
                reply = FinishedReply(**record, reply=Reply(**fields))
            except InvalidInputError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InvalidInputError(
                    f"{path}, line {number}, is damaged or none of ours. Delete the line to ask its question again, "
                    "or pass another folder."
                ) from None
            self._replies[reply.arm, reply.id] = reply
        logger.info("%s: going on after %d finished replies.", path, len(self._replies))

    def __len__(self) -> int:
        return len(self._replies)

    def find(self, arm: str, question: Question) -> FinishedReply | None:
        """The finished reply of this arm to this question.

        Raises:
            InvalidInputError: Something else was asked under this id.
        """
        found = self._replies.get((arm, question.id))
        if found is not None and found.digest != question.digest():
            raise InvalidInputError(
                f"Question {question.id!r} is not the one that {self._path} has a reply to: its words, image or "
                "gold passages changed. Pass another folder for the new questions."
            )
        return found

    def add(self, replies: Iterable[FinishedReply]) -> None:
        """Keeps replies; with a path, they are on the disk when this returns."""
        new = list(replies)
        if self._path is not None:
            _append(self._path, map(asdict, new))
        self._replies.update({(reply.arm, reply.id): reply for reply in new})


def _whole_lines(path: Path) -> list[bytes]:
    """All lines; a last one without its end is cut off, in the file too."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        logger.warning("%s: dropped a last line that was not written to its end.", path)
        os.truncate(path, end)
    return data[:end].splitlines()


def _append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with open(path, "ab") as file:
        file.writelines(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
