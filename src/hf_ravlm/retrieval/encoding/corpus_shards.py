"""The staging folder of an embedding job: what was planned, which shards are finished, and the file that joins them.

```
staging/<job id>/
  plan.json                 what is embedded by whom, in which pieces; its SHA-256 is the job id
  shard-00000.safetensors   the vectors of rows 0 to shard_rows - 1
  shard-00000.json          its SHA-256 and size; written last, so a shard without a matching record does not count
  vectors.safetensors       all shards end to end, with vectors.json as its record
```

Other passages, another encoder or other boundaries are another job. Every file is written under a new name, flushed
and renamed: a process that is killed leaves finished shards and perhaps a `.tmp` file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import KnowledgeBaseCorruptError
from ...saving.arrays import open_arrays, write_arrays
from ...saving.durable import (
    TEMPORARY_SUFFIX,
    make_folder,
    publish_file,
    read_regular,
    replace_file,
    sha256_of,
    try_lock,
)
from ...saving.safe_paths import absolute_folder


_FORMAT = 1
_MAX_RECORD_BYTES = 65_536
MERGED = "vectors"


@dataclass(frozen=True)
class EmbeddingPlan:
    """What fixes the result, up to the rounding of the machine.

    Attributes:
        num_rows: Passages.
        shard_rows: Rows of a shard; the last may have fewer.
        call_rows: Rows that the encoder gets at once, from the longest text of a shard to the shortest.
        encoder_name: For people.
        encoder_fingerprint: Weights, their number type, preprocessing.
        input_sha256: Over texts and images of all passages in their order.
    """

    num_rows: int
    shard_rows: int
    call_rows: int
    encoder_name: str
    encoder_fingerprint: str
    input_sha256: str

    def to_json(self) -> bytes:
        """Returns the content of `plan.json`."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode()

    @property
    def job_id(self) -> str:
        """The name of the job's folder."""
        return hashlib.sha256(self.to_json()).hexdigest()[:20]

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return -(-self.num_rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """Returns the rows of a shard.

        >>> EmbeddingPlan(10, 4, 2, "", "", "").rows_of(2)
        range(8, 10)
        """
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_rows))


class StagingFolder:
    """The files of one job; several processes may write different shards at the same time.

    Args:
        staging: Holds the folders of all jobs; created if needed.
        plan: What is to be embedded.

    Raises:
        KnowledgeBaseCorruptError: If the folder of the job holds another plan.
    """

    def __init__(self, staging: Path, plan: EmbeddingPlan) -> None:
        self.plan = plan
        self.folder = absolute_folder(staging) / plan.job_id
        make_folder(self.folder)
        self._hold()
        plan_file = self.folder / "plan.json"
        if not plan_file.exists():
            replace_file(plan_file, plan.to_json())
        elif not _holds(plan_file, plan.to_json()):
            raise KnowledgeBaseCorruptError(f"{plan_file}: damaged. Delete {self.folder} and run again.")

    def is_announced(self, name: str) -> bool:
        """Whether a shard or the joined vectors have a record; a quick look that verifies nothing."""
        return self._record(name).exists()

    def is_finished(self, name: str) -> bool:
        """Whether a shard or the joined vectors are there and are, byte for byte, what was written."""
        try:
            record = json.loads(read_regular(self._record(name), _MAX_RECORD_BYTES))
            path = self._data(name)
            return bool(path.stat().st_size == record["bytes"] and sha256_of(path) == record["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _hold(self) -> None:
        """Locks the folder, together with other processes of the job, against `remove_leftovers`, while this lives."""
        if os.name == "nt":  # which cannot open folders
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        with suppress(OSError):  # a disk without locks
            try_lock(descriptor, shared=True)

    def write_shard(self, shard: int, vectors: np.ndarray) -> None:
        """Stores the vectors (n, D) of a shard, durably, and after them its record."""
        self._publish(shard_name(shard), lambda path: write_arrays(path, {"vectors": vectors}), vectors.shape)

    def merge(self) -> None:
        """Writes all shards end to end into one file; every one must be finished.

        Raises:
            KnowledgeBaseCorruptError: If they have another shape than planned, or differ in width.
        """
        shards = [self.read(shard_name(shard)) for shard in range(self.plan.num_shards)]
        if [len(shard) for shard in shards] != [len(self.plan.rows_of(place)) for place in range(len(shards))]:
            raise KnowledgeBaseCorruptError(f"{self.folder}: shards of other sizes. Delete the folder; run again.")
        widths = sorted({shard.shape[1] for shard in shards})
        if len(widths) != 1:
            raise KnowledgeBaseCorruptError(f"{self.folder}: shards of widths {widths}. Delete the folder; run again.")
        shape = (self.plan.num_rows, widths[0])
        self._publish(MERGED, partial(_write_end_to_end, shards, shape), shape)
        for leftover in self.folder.glob(f"*{TEMPORARY_SUFFIX}"):  # of processes that were killed
            leftover.unlink(missing_ok=True)

    def read(self, name: str) -> np.ndarray:
        """Maps the vectors of a shard, or all of them, (n, D) in float32, read-only.

        Raises:
            KnowledgeBaseCorruptError: If the file holds something else.
        """
        vectors = open_arrays(self._data(name))[0].get("vectors")
        if vectors is None or vectors.dtype != np.float32 or vectors.ndim != 2:
            raise KnowledgeBaseCorruptError(f"{self._data(name)}: not the vectors of this job. Delete it; run again.")
        return vectors

    def _publish(self, name: str, write: Callable[[Path], None], shape: tuple[int, ...]) -> None:
        _, sha256, num_bytes = publish_file(write, self.folder, lambda _: self._data(name))
        record = {"sha256": sha256, "bytes": num_bytes, "shape": list(shape)}
        replace_file(self._record(name), json.dumps(record, sort_keys=True).encode())

    def _data(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def progress_of(staging: Path) -> float | None:
    """Which share of the passages of the jobs below a folder is encoded, 0 to 1; `None` if no job lies there."""
    done = planned = 0
    for plan_file in staging.rglob("plan.json"):
        try:
            plan = json.loads(read_regular(plan_file, _MAX_RECORD_BYTES))
            num_shards = -(-plan["num_rows"] // plan["shard_rows"])
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue
        finished = num_shards if (plan_file.parent / f"{MERGED}.json").exists() else 0
        planned += num_shards
        done += finished or min(num_shards, len(list(plan_file.parent.glob("shard-*.json"))))
    return done / planned if planned else None


def remove_leftovers(staging: Path) -> None:
    """Removes the jobs below a folder that nobody works on any more: those of processes that were killed."""
    for job in [plan_file.parent for plan_file in staging.rglob("plan.json")] if os.name != "nt" else []:
        with suppress(OSError):
            descriptor = os.open(job, os.O_RDONLY)
            try:
                if try_lock(descriptor):
                    shutil.rmtree(job)
                    job.parent.rmdir()  # where other jobs lie, it stays
            finally:
                os.close(descriptor)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read_regular(path, _MAX_RECORD_BYTES) == data
    except OSError:
        return False


def shard_name(shard: int) -> str:
    """Returns the name of a shard's files, without suffix."""
    return f"shard-{shard:05d}"


def _write_end_to_end(shards: list[np.ndarray], shape: tuple[int, int], path: Path) -> None:
    """Writes one safetensors file from several arrays (n, D) without holding them in memory."""
    num_bytes = shape[0] * shape[1] * 4
    header = json.dumps({"vectors": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, num_bytes]}}).encode()
    header += b" " * (-len(header) % 8)  # the data begins at a multiple of 8 bytes
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for shard in shards:
            np.ascontiguousarray(shard, "<f4").tofile(file)
