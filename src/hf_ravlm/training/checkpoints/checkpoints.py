"""Complete checkpoints: the list of their files is written last, when all of them are on the disk.

A checkpoint without its list, or with a file that is missing, of another size or with other bytes, is not resumed
from: the Trainer would say nothing and go on without the optimizer, the random states, or with other weights.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

from ...errors import InvalidInputError
from ...saving.durable import replace_file, sha256_of, sync_file, sync_folder


logger = logging.getLogger(__name__)

COMPLETE = "complete.json"
_MARK_OF_THE_TRAINER = "checkpoint-is-incomplete.txt"  # there while `enable_jit_checkpoint` writes, gone afterwards
_THREADS = 4  # that read large files at once
_NAME = re.compile(r"^checkpoint-(\d+)$")


def mark_complete(checkpoint: str | PathLike[str], resumable: bool = True) -> None:
    """Flushes every file of a checkpoint, and then writes their list; `resumable` if it holds more than the model."""
    folder = Path(checkpoint)
    passing = (COMPLETE, _MARK_OF_THE_TRAINER)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in passing)
    for path in files:
        sync_file(path)
    for path in sorted({path.parent for path in files}):
        sync_folder(path)
    names = [path.relative_to(folder).as_posix() for path in files]
    record = {
        "resumable": resumable,
        "files": dict(zip(names, (path.stat().st_size for path in files), strict=True)),
        "sha256": dict(zip(names, _digests(files), strict=True)),
    }
    replace_file(folder / COMPLETE, json.dumps(record, indent=1).encode())


def what_is_torn(checkpoint: str | PathLike[str]) -> str | None:
    """What is wrong with a checkpoint, in words; `None` if it is complete."""
    folder = Path(checkpoint)
    try:
        record = json.loads((folder / COMPLETE).read_bytes())
        sizes, digests, resumable = dict(record["files"]), dict(record.get("sha256", {})), record["resumable"]
    except FileNotFoundError:
        return f"it has no {COMPLETE}, so it was not finished, or not by this trainer"
    except (ValueError, KeyError, TypeError):
        return f"its {COMPLETE} is damaged"
    if not resumable:
        return "it holds the model alone (save_only_model=True)"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != size:
            return f"its file {name} has {path.stat().st_size} bytes instead of {size}"
    found = dict(zip(digests, _digests([folder / name for name in digests]), strict=True))
    altered = [name for name, digest in digests.items() if found[name] != digest]
    return f"its file {altered[0]} holds other bytes than were written" if altered else None


def _digests(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 of files, several at a time."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(sha256_of, paths))


def newest_complete(folder: str | PathLike[str], up_to: int | None = None) -> Path | None:
    """The complete checkpoint of the highest step in an output folder, up to a step; `None` without any checkpoint.

    Incomplete ones of higher steps are skipped with a warning.

    Raises:
        InvalidInputError: If no checkpoint is complete.
    """
    paths = Path(folder).glob("checkpoint-*")
    steps = {int(match[1]): path for path in paths if (match := _NAME.match(path.name))}
    torn = []
    for step in sorted((step for step in steps if up_to is None or step <= up_to), reverse=True):
        fault = what_is_torn(steps[step])
        if fault is None:
            return steps[step]
        torn.append(f"{steps[step].name}: {fault}")
        logger.warning("%s is skipped: %s.", steps[step], fault)
    if torn:
        raise InvalidInputError(
            f"{folder}: none of {len(torn)} checkpoints is complete ({'; '.join(torn[:3])}). Restore one from a copy, "
            "or begin anew without `resume_from_checkpoint`, in another output folder."
        )
    return None


def checkpoint_to_resume(output_dir: str, asked: str | PathLike[str] | bool | None) -> str | None:
    """The checkpoint that a training goes on from; `None` for a fresh start.

    Args:
        output_dir: Where the training writes its checkpoints.
        asked: `True` for the newest complete one; a path for that one, or the newest complete one before it; `None`
            or `False` for none.

    Raises:
        InvalidInputError: If the one asked for is missing, or no checkpoint is complete.
    """
    if asked is None or asked is False:
        return None
    if asked is True:
        found = newest_complete(output_dir)
        if found is None:
            raise InvalidInputError(f"{output_dir} holds no checkpoint to resume from. Begin without one.")
        return str(found)
    path = Path(asked)
    if not path.is_dir():
        raise InvalidInputError(f"{path} is no checkpoint folder.")
    if what_is_torn(path) is None:
        return str(path)
    match = _NAME.match(path.name)
    found = newest_complete(path.parent, int(match[1])) if match else None
    if found is None:
        raise InvalidInputError(f"{path} is torn ({what_is_torn(path)}), and no complete checkpoint stands before it.")
    return str(found)
