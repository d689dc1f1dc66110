"""The staging folder of an embedding job: what was planned, which shards are finished, and the file that joins them.

```
staging/<job id>/
  plan.json                 what is embedded by whom, in which pieces; its SHA-256 is the job id
  shard-00000.safetensors   the vectors of rows 0 to shard_rows - 1
  shard-00000.json          its SHA-256 and size; written last, so a shard without a matching record does not count
  vectors.safetensors       all shards end to end, with vectors.json as its record
```

Other passages, another encoder or other boundaries are another job in a folder of its own. Every file is written under
a new name, flushed and renamed: a process that is killed leaves finished shards and perhaps a `.tmp` file.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import KnowledgeBaseCorruptError
from ...saving.arrays import open_arrays, write_arrays
from ...saving.durable import TEMPORARY_SUFFIX, make_folder, publish_file, replace_file, sha256_of


_FORMAT = 1
_MAX_RECORD_BYTES = 65_536
_MERGED = "vectors"


@dataclass(frozen=True)
class EmbeddingPlan:
    """What fixes every bit of the result, on a given machine.

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
        """The content of `plan.json`."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode()

    @property
    def job_id(self) -> str:
        """Names the folder of the job."""
        return hashlib.sha256(self.to_json()).hexdigest()[:20]

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return -(-self.num_rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """The rows of a shard.

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
        self.folder = staging / plan.job_id
        make_folder(self.folder)
        plan_file = self.folder / "plan.json"
        if not plan_file.exists():
            replace_file(plan_file, plan.to_json())
        elif plan_file.read_bytes() != plan.to_json():
            raise KnowledgeBaseCorruptError(f"{plan_file}: damaged. Delete {self.folder} and run again.")

    def is_finished(self, shard: int) -> bool:
        """Whether a shard is there and is, byte for byte, what was written."""
        return self._matches_record(_shard_name(shard))

    def has_record(self, shard: int) -> bool:
        """Whether a shard was announced; a quick look that verifies nothing."""
        return self._record(_shard_name(shard)).exists()

    def num_missing(self) -> int:
        """How many shards were not announced yet."""
        return sum(not self.has_record(shard) for shard in range(self.plan.num_shards))

    def write_shard(self, shard: int, vectors: np.ndarray) -> None:
        """Stores the vectors of a shard, durably, and after them its record."""
        self._publish(_shard_name(shard), lambda path: write_arrays(path, {"vectors": vectors}), vectors.shape)

    def read_shard(self, shard: int) -> np.ndarray:
        """Maps the vectors of a finished shard, (n, D).

        Raises:
            KnowledgeBaseCorruptError: If they have another shape than planned.
        """
        path = self._data(_shard_name(shard))
        vectors = open_arrays(path)[0].get("vectors")
        if vectors is None or vectors.dtype != np.float32 or vectors.shape[:1] != (len(self.plan.rows_of(shard)),):
            raise KnowledgeBaseCorruptError(f"{path}: not the vectors of {self.plan.rows_of(shard)}. Delete it.")
        return vectors

    def merge(self) -> None:
        """Writes all shards end to end into one file; every one must be finished.

        Raises:
            KnowledgeBaseCorruptError: If their vectors differ in width.
        """
        shards = [self.read_shard(shard) for shard in range(self.plan.num_shards)]
        widths = sorted({shard.shape[1] for shard in shards})
        if len(widths) != 1:
            raise KnowledgeBaseCorruptError(f"{self.folder}: shards of widths {widths}. Delete the folder; run again.")
        shape = (self.plan.num_rows, widths[0])
        self._publish(_MERGED, lambda path: _write_end_to_end(path, shards, shape), shape)
        for leftover in self.folder.glob(f"*{TEMPORARY_SUFFIX}"):  # of processes that were killed
            leftover.unlink(missing_ok=True)

    def is_merged(self) -> bool:
        """Whether the joined vectors are there, byte for byte."""
        return self._matches_record(_MERGED)

    def has_merged_record(self) -> bool:
        """Whether the joined vectors were announced; a quick look that verifies nothing."""
        return self._record(_MERGED).exists()

    def read_merged(self) -> np.ndarray:
        """Maps all vectors, (N, D) in float32, read-only."""
        return open_arrays(self._data(_MERGED))[0]["vectors"]

    def _publish(self, name: str, write: Any, shape: tuple[int, ...]) -> None:
        digests: list[str] = []

        def final_path(digest: str) -> Path:
            digests.append(digest)
            return self._data(name)

        _, num_bytes = publish_file(write, self.folder, final_path)
        record = {"sha256": digests[0], "bytes": num_bytes, "shape": list(shape)}
        replace_file(self._record(name), json.dumps(record, sort_keys=True).encode())

    def _matches_record(self, name: str) -> bool:
        try:
            content = self._record(name).read_bytes()
            record = json.loads(content[:_MAX_RECORD_BYTES])
            path = self._data(name)
            return bool(path.stat().st_size == record["bytes"] and sha256_of(path) == record["sha256"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def _data(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _shard_name(shard: int) -> str:
    return f"shard-{shard:05d}"


def _write_end_to_end(path: Path, shards: list[np.ndarray], shape: tuple[int, int]) -> None:
    """Writes one safetensors file from several arrays (n, D) without holding them in memory."""
    num_bytes = shape[0] * shape[1] * 4
    header = json.dumps({"vectors": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, num_bytes]}}).encode()
    header += b" " * (-len(header) % 8)  # the data begins at a multiple of 8 bytes
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for shard in shards:
            np.ascontiguousarray(shard, "<f4").tofile(file)
