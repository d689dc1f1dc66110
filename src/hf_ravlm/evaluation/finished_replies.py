"""Knows which questions are answered: a file that grows by one checked line per reply, and survives a kill.

The first line holds the settings, every other one a reply with a checksum. Lines are only ever appended, and forced to
the disk batch by batch. What a kill tore off at the end is cut away when the file is opened again; damage anywhere
else, other settings or a question that is not the one that was answered are errors, and never a silent mixture of two
runs.
"""

from __future__ import annotations

import hashlib
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

_FORMAT = 1


@dataclass(frozen=True)
class FinishedItem:
    """One reply, with what it cost."""

    arm: str
    id: str
    digest: str
    reply: Reply
    seconds: float


class FinishedItems:
    """The replies of a run, in memory and, with a path, in a file.

    Args:
        path (`Path`, *optional*): The file; made if it is not there. `None` keeps nothing.
        settings (`dict`): Whatever decides what replies come: JSON values. A file of other settings is not continued.

    Raises:
        InvalidInputError: The file is of other settings or damaged.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._items: dict[tuple[str, str], FinishedItem] = {}
        head = {"format": _FORMAT, "settings": json.loads(json.dumps(settings))}
        if path is None:
            return
        lines = _whole_lines(path) if path.exists() else []
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            _append(path, [_seal(head)])
            return
        found = _unseal(lines[0], path, 1)
        if found != head:
            raise InvalidInputError(
                f"{path} holds replies of other settings: {json.dumps(found.get('settings'))} instead of "
                f"{json.dumps(head['settings'])}. Pass another folder, or the same settings to go on."
            )
        for number, line in enumerate(lines[1:], start=2):
            record = _unseal(line, path, number)
            fields: dict[str, Any] = record.pop("reply")
            fields |= {name: tuple(fields[name]) for name in ("evidence_ids", "evidence_texts")}
            item = FinishedItem(**record, reply=Reply(**fields))
            self._items[item.arm, item.id] = item
        logger.info("%s: going on after %d finished items.", path, len(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def find(self, arm: str, question: Question) -> FinishedItem | None:
        """The finished item of this arm and question.

        Raises:
            InvalidInputError: Something else was asked under this id.
        """
        item = self._items.get((arm, question.id))
        if item is not None and item.digest != question.digest():
            raise InvalidInputError(
                f"Question {question.id!r} is not the one that {self._path} has a reply to: its words, picture or "
                "gold passages changed. Pass another folder for the new questions."
            )
        return item

    def add(self, items: Iterable[FinishedItem]) -> None:
        """Keeps replies; with a path, they are on the disk when this returns."""
        new = list(items)
        if self._path is not None:
            _append(self._path, [_seal(asdict(item)) for item in new])
        self._items.update({(item.arm, item.id): item for item in new})


def _whole_lines(path: Path) -> list[bytes]:
    """All lines; a last one without its end is cut off, in the file too."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        logger.warning("%s: dropped a last line that was not written to its end.", path)
        os.truncate(path, end)
    return data[:end].splitlines()


def _seal(record: Mapping[str, Any]) -> str:
    body = json.dumps(record, ensure_ascii=False, sort_keys=True)
    return f'{{"check": "{_checksum(body)}", "item": {body}}}\n'


def _unseal(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
        item: dict[str, Any] = record["item"]
        if record["check"] == _checksum(json.dumps(item, ensure_ascii=False, sort_keys=True)):
            return item
    except (ValueError, KeyError, TypeError):
        pass
    raise InvalidInputError(f"{path}, line {number}, is damaged. Delete the line to ask its question again.")


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _append(path: Path, lines: list[str]) -> None:
    with open(path, "ab") as file:
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())
