"""Complete checkpoints: the list of their files is written last, when all of them are on the disk.

A checkpoint without its list, or with a file that is missing or of another size, is not resumed from: the Trainer
would say nothing and go on without the optimizer or the random states.
"""

from __future__ import annotations

import json
import logging
import re
from os import PathLike
from pathlib import Path

from ...errors import InvalidInputError
from ...saving.durable import replace_file, sync_file, sync_folder


logger = logging.getLogger(__name__)

COMPLETE = "complete.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def mark_complete(checkpoint: str | PathLike[str], resumable: bool = True) -> None:
    """Flushes every file of a checkpoint, and then writes their list; `resumable` if it holds more than the model."""
    folder = Path(checkpoint)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / COMPLETE)
    for path in files:
        sync_file(path)
    for path in sorted({path.parent for path in files}):
        sync_folder(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    replace_file(folder / COMPLETE, json.dumps({"resumable": resumable, "files": sizes}, indent=1).encode())


def what_is_torn(checkpoint: str | PathLike[str]) -> str | None:
    """What is wrong with a checkpoint, in words; `None` if it is complete."""
    folder = Path(checkpoint)
    try:
        record = json.loads((folder / COMPLETE).read_bytes())
        sizes, resumable = dict(record["files"]), record["resumable"]
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
    return None


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
