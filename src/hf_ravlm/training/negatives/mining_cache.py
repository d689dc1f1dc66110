"""Mined batches as files, each written in one step and named after what decides its content.

An interrupted run goes on where it stopped, and processes wait for each other's files: a collective operation would
time out while one of them works.
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

_TIMEOUT_SECONDS = 3600


class MiningCache:
    """The files of one job.

    Args:
        folder: Where jobs keep their files; several may share it.
        identity: What decides the result, beside the rows; for JSON.
    """

    def __init__(self, folder: str | PathLike[str], identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder) / _digest(identity)
        make_folder(self.folder)

    def read(self, number: int, rows: Sequence[TrainingRow]) -> Any:
        """The result of batch `number` for these rows; `None` if it was not written, or is damaged."""
        path = self._path(number, rows)
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            logger.warning("%s is damaged; the batch is mined again.", path)
            return None

    def write(self, number: int, rows: Sequence[TrainingRow], result: Sequence[Any]) -> None:
        """Keeps the result of batch `number`."""
        replace_file(self._path(number, rows), json.dumps(result).encode())

    def wait_for(self, number: int, rows: Sequence[TrainingRow]) -> Any:
        """The result of a batch that another process works on.

        Raises:
            TimeoutError: If no file of any process arrives for an hour.
        """
        deadline, arrived = 0.0, -1
        while (result := self.read(number, rows)) is None:
            now = sum(1 for _ in self.folder.glob("*.json"))
            if now != arrived:
                deadline, arrived = time.monotonic() + _TIMEOUT_SECONDS, now
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    f"{self.folder}: no mined batch arrived for {_TIMEOUT_SECONDS} s; batch {number} belongs to "
                    "another process. See whether it still runs and has the same rows; finished batches are kept."
                )
            time.sleep(0.1)
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
