"""Mined batches as files, each written in one step and named after what decides its content.

So a run that was interrupted goes on where it stopped, and processes wait for each other's files instead of in a
collective operation, which would time out while one of them works.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from ...saving.durable import make_folder, replace_file
from ..batches.rows import TrainingRow


logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


class MiningCache:
    """The files of one job.

    Args:
        folder: Where jobs keep their files; several may share it.
        identity: What decides the result, beside the rows; for JSON.
        timeout_seconds: How long to wait while no file of any process arrives.
    """

    def __init__(
        self, folder: str | PathLike[str], identity: Mapping[str, Any], timeout_seconds: float = 3600
    ) -> None:
        self.folder = Path(folder) / _digest(identity)
        self.timeout_seconds = timeout_seconds
        make_folder(self.folder)

    def read(self, number: int, rows: Sequence[TrainingRow]) -> list[Any] | None:
        """The result of batch `number` for these rows, if it was written."""
        path = self._path(number, rows)
        try:
            result: list[Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            logger.warning("%s is damaged; the batch is mined again.", path)
            return None
        return result

    def write(self, number: int, rows: Sequence[TrainingRow], result: Sequence[Any]) -> None:
        """Keeps the result of batch `number`."""
        replace_file(self._path(number, rows), json.dumps(result).encode())

    def wait_for(self, number: int, rows: Sequence[TrainingRow]) -> list[Any]:
        """The result of a batch that another process works on.

        Raises:
            TimeoutError: If no file arrived for a long time.
        """
        deadline, arrived = time.monotonic() + self.timeout_seconds, -1
        while (result := self.read(number, rows)) is None:
            now = sum(1 for _ in self.folder.glob("*.json"))
            if now != arrived:
                deadline, arrived = time.monotonic() + self.timeout_seconds, now
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    f"{self.folder}: no mined batch arrived for {self.timeout_seconds:g} s; batch {number} belongs to "
                    "another process. See whether it still runs and has the same rows; finished batches are kept."
                )
            time.sleep(_POLL_SECONDS)
        return result

    def _path(self, number: int, rows: Sequence[TrainingRow]) -> Path:
        content = [
            (row.question, row.answers, row.gold_ids, row.exclude_ids, _image_digest(row.image)) for row in rows
        ]
        return self.folder / f"batch-{number:06d}-{_digest(content)}.json"


def _image_digest(image: Any) -> str | None:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if image is None or isinstance(image, (str, PathLike)):
        return None if image is None else str(image)
    if isinstance(image, Image.Image):
        image = f"{image.mode}{image.size}".encode() + image.tobytes()
    return hashlib.sha256(image if isinstance(image, bytes) else repr(image).encode()).hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:16]
