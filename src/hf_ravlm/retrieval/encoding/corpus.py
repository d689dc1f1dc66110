"""The embedding of a whole knowledge base: in shards that survive a kill, by one process or by many.

Processes that `accelerate launch` or `torchrun` started share the shards by their rank. They need no network between
them, only the folder: rank 0 joins the shards when all are there.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InvalidInputError, storage_errors
from ..passage import input_digest, passages_at
from ..row_spool import release_rows
from .corpus_shards import MERGED, EmbeddingPlan, StagingFolder, shard_name
from .cost import announce, cost_of
from .encoders import Encoder, encode_passages, require_batch_size
from .text_counts import counts_of, warn_of_passages
from .token_batches import encode_halving, longest_first


logger = logging.getLogger(__name__)

_TEXT_BATCHES_PER_CALL = 32
_CALLS_PER_SHARD = 4
_POLL_SECONDS = 0.2


class Corpus(Protocol):
    """What is embedded: passages as rows of a table, such as a `KnowledgeBase`."""

    @property
    def table(self) -> pa.Table: ...


def embed_corpus(
    knowledge_base: Corpus,
    encoder: Encoder,
    *,
    batch_size: int = 64,
    staging: str | os.PathLike[str] | None = None,
    shard_rows: int | None = None,
    process: tuple[int, int] | None = None,
    timeout_seconds: float = 1800.0,
) -> np.ndarray:
    """Returns the unit vectors of all passages.

    Interrupted at any point and run again with the same `staging`, it goes on with the first unfinished shard and
    returns the same vectors up to rounding, for shards and batches have fixed boundaries.

    Args:
        knowledge_base: The passages; may be empty.
        encoder: Encodes them. Resuming needs one whose fingerprint stays the same.
        batch_size: How many images are decoded and encoded at once. An encoder gets 32 times as many texts, and
            batches them itself. Where memory does not suffice, halves are encoded.
        staging: A folder for unfinished work, on a disk that all processes see; `None` works in memory.
        shard_rows: Passages in a shard, the most that a kill can cost; `None` for four calls of the encoder.
        process: Rank and number of the processes that share the work in `staging`; `None` reads `RANK` and
            `WORLD_SIZE`, as launchers set them. `(0, 1)` works alone.
        timeout_seconds: How long a process waits for the others without seeing a new shard.

    Returns:
        An array (N, D) in float32 in every process; with `staging` a read-only memory map.

    Raises:
        InvalidInputError: If an argument is wrong, the encoder returns vectors of a wrong number, shape or type, or
            the disk of `staging` cannot hold them all, which is seen after the first call of the encoder.
        UnsafeInputError: If a vector is zero, NaN or infinite.
        TimeoutError: If other processes stop delivering.
        RuntimeError: If the memory does not suffice for a single passage.

    >>> import tempfile
    >>> from hf_ravlm.retrieval import KnowledgeBase
    >>> class LengthEncoder:
    ...     name, fingerprint = "lengths", "0" * 64
    ...
    ...     def encode_passages(self, texts, images):
    ...         return np.array([[len(text), 1] for text in texts], np.float32)
    >>> knowledge_base = KnowledgeBase.from_dicts([{"id": 1, "text": "wren"}, {"id": 2, "text": "a wren"}])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     embed_corpus(knowledge_base, LengthEncoder(), staging=folder, process=(0, 1)).round(2).tolist()
    [[0.9700000286102295, 0.23999999463558197], [0.9900000095367432, 0.1599999964237213]]
    """
    require_batch_size(batch_size)
    if shard_rows is not None and shard_rows < 1:
        raise InvalidInputError(f"shard_rows={shard_rows}: expected at least 1.")
    table = knowledge_base.table
    if len(table) == 0:
        return np.zeros((0, 0), np.float32)
    before = counts_of(encoder)
    try:
        with nullcontext() if staging is None else storage_errors(staging):
            return _embed(table, encoder, batch_size, staging, shard_rows, process, timeout_seconds)
    finally:
        warn_of_passages(encoder, before)


def _embed(
    table: pa.Table,
    encoder: Encoder,
    batch_size: int,
    staging: str | os.PathLike[str] | None,
    shard_rows: int | None,
    process: tuple[int, int] | None,
    timeout_seconds: float,
) -> np.ndarray:
    """See `embed_corpus`; there is at least one passage."""
    has_images = table["image"].null_count < len(table)
    call_rows = batch_size if has_images else batch_size * _TEXT_BATCHES_PER_CALL
    if staging is None:
        with _progress_bar(len(table), call_rows) as bar:
            return _encode_rows(table, encoder, range(len(table)), call_rows, bar)
    plan = EmbeddingPlan(
        num_rows=len(table),
        shard_rows=shard_rows or call_rows * _CALLS_PER_SHARD,
        call_rows=call_rows,
        encoder_name=encoder.name,
        encoder_fingerprint=encoder.fingerprint,
        input_sha256=input_digest(table),
    )
    folder = StagingFolder(Path(staging), plan)
    # From the launcher's variables: asking its library would set up the network, too.
    launched = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    rank, num_processes = launched if process is None else process
    if not 0 <= rank < num_processes:
        raise InvalidInputError(f"process=({rank}, {num_processes}): expected 0 <= rank < number of processes.")
    if not folder.is_finished(MERGED):
        _encode_shards(table, encoder, folder, range(rank, plan.num_shards, num_processes), num_processes)
        shards = [shard_name(shard) for shard in range(plan.num_shards)]
        if rank == 0:
            missing = _wait_for(folder, shards, shards, timeout_seconds)
            ranks = sorted({shards.index(name) % num_processes for name in missing})
            problem = (
                f"{len(missing)} of {len(shards)} shards are missing, and none came for {timeout_seconds:g} s. They "
                f"belong to the processes with rank {ranks} of {num_processes}"
            )
        else:
            missing = _wait_for(folder, [*shards, MERGED], [MERGED], timeout_seconds)
            problem = f"the process with rank 0 has not joined the shards within {timeout_seconds:g} s"
            problem += f" (missing: {', '.join(missing[:5])})"
        if missing:
            raise TimeoutError(f"{folder.folder}: {problem}. {_hint(folder)}")
        if rank == 0:
            folder.merge()
    return folder.read(MERGED)


def _encode_shards(
    table: pa.Table, encoder: Encoder, folder: StagingFolder, shards: Sequence[int], num_processes: int
) -> None:
    unfinished = [shard for shard in shards if not folder.is_finished(shard_name(shard))]
    num_done = len(shards) - len(unfinished)
    if num_done:
        logger.info("%s: %d of %d shards are finished already", folder.folder, num_done, len(shards))
    plan, is_announced = folder.plan, len(unfinished) < 2  # a short work is done before it is announced

    def announce_cost(vectors: np.ndarray, seconds: float) -> None:
        nonlocal is_announced
        if not is_announced:
            is_announced = True
            num_left = sum(len(plan.rows_of(shard)) for shard in unfinished) * num_processes
            announce(cost_of(num_left, vectors.shape[1], seconds / len(vectors)), folder.folder, num_processes)

    with _progress_bar(sum(len(plan.rows_of(shard)) for shard in unfinished), plan.call_rows) as bar:
        for shard in unfinished:
            rows = plan.rows_of(shard)
            folder.write_shard(shard, _encode_rows(table, encoder, rows, plan.call_rows, bar, announce_cost))
            release_rows()


def _encode_rows(
    table: pa.Table,
    encoder: Encoder,
    rows: range,
    call_rows: int,
    bar: Any,
    measured: Callable[[np.ndarray, float], None] | None = None,
) -> np.ndarray:
    """Unit vectors (n, D) of a range of passages, encoded from the longest text to the shortest to spare padding.

    `measured` gets the vectors of each call of the encoder, and the seconds that it took.
    """
    lengths = pc.fill_null(pc.utf8_length(table["text"].slice(rows.start, len(rows))), 0)  # (n,) characters
    order = rows.start + longest_first(lengths.to_numpy())
    vectors: np.ndarray | None = None

    def encode(rows: list[int]) -> np.ndarray:
        dim = None if vectors is None else vectors.shape[1]
        return encode_passages(encoder, passages_at(table, rows), "passage vectors", dim)

    for start in range(0, len(order), call_rows):
        call = order[start : start + call_rows]
        begun = time.perf_counter()
        encoded = encode_halving(encode, call.tolist())
        if measured is not None:
            measured(encoded, time.perf_counter() - begun)
        if vectors is None:
            vectors = np.empty((len(rows), encoded.shape[1]), np.float32)
        vectors[call - rows.start] = encoded
        bar.update(len(call))
    assert vectors is not None
    return vectors


def _progress_bar(num_rows: int, call_rows: int) -> Any:
    """A bar that counts passages; what is done in one call of the encoder needs none."""
    from transformers.utils.logging import tqdm

    return tqdm(total=num_rows, desc="Embedding passages", unit="passage", disable=num_rows <= call_rows)


def _wait_for(
    folder: StagingFolder, names: Sequence[str], verified: Collection[str], timeout_seconds: float
) -> list[str]:
    """Waits for files, some `verified` by their contents; returns those missing when none came for some time."""
    missing, deadline = list(names), time.monotonic() + timeout_seconds
    while True:
        announced = {name for name in missing if folder.is_announced(name)}
        arrived = {name for name in announced if name not in verified or folder.is_finished(name)}
        missing = [name for name in missing if name not in arrived]
        if arrived:
            deadline = time.monotonic() + timeout_seconds
        if not missing or time.monotonic() >= deadline:
            return missing
        time.sleep(_POLL_SECONDS)


def _hint(folder: StagingFolder) -> str:
    """What to look for: a process that died, or one that works on another job."""
    others = sorted(path.parent.name for path in folder.folder.parent.glob("*/plan.json"))
    others.remove(folder.folder.name)
    hint = "and call `embed_corpus` with the same folder"
    if others:
        hint = (
            "and whether they have the same passages and the same encoder in the same number type: the folder also "
            f"holds the jobs {others}"
        )
    return f"See whether they still run {hint}. Finished shards are kept: run again to go on."
