"""What a knowledge base of ten thousand to ten million passages takes: to build, to open, to search and to add to.

    python benchmarks/growth.py --folder /data/scratch --rows 10000 100000 1000000 10000000 --plot growth.png

Vectors are made up: around as many centres as a corpus has topics, of width 64, on the disk from the beginning; so are
the passages, one short text each. `index="auto"`. Each size is opened in a fresh process, which asks single queries
and adds a hundred passages. CPU seconds of one thread; `own` memory is what the process alone must have (`RssAnon`),
above what it had before it opened the folder. Ten million take 6 GB of disk, and about half an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import faiss
import numpy as np
import pyarrow as pa
import torch
from transformers.utils.logging import disable_progress_bar

from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from hf_ravlm.retrieval.indexes.exact_search import exact_search
from hf_ravlm.retrieval.indexes.index_tuning import found_share
from hf_ravlm.retrieval.passage import SCHEMA
from hf_ravlm.saving.drawing import BLUE, FAINT, GREEN, GREY, INK, LINE, RED, canvas, write
from large_files import own_bytes


DIM, K, NUM_QUERIES, NUM_ADDED, BLOCK = 64, 10, 200, 100, 100_000
ROWS_PER_TOPIC, SPREAD = 200, 0.6
SIZE, LEFT, TOP, WIDTH, HEIGHT = (700, 380), 70, 24, 420, 300  # of the plot, in pixels
COLUMNS = {
    "build_s": "build, CPU s",
    "store_mb": "on disk, MB",
    "index": "index",
    "recall": "recall@10",
    "open_full_s": "open and verify, s",
    "open_s": "open, s",
    "own_mb": "own memory, MB",
    "search_ms": "search, CPU ms",
    "retrieve_ms": "with passages, CPU ms",
    "first_add_s": "first add of 100, CPU s",
    "add_s": "next add, CPU s",
}


class NoEncoder:
    """Vectors come ready; what is added gets one from its number."""

    name, fingerprint = "numbers", "d" * 64

    def encode_queries(self, images, texts):
        return unit(np.stack([np.random.default_rng(len(text)).normal(size=DIM) for text in texts]))

    def encode_passages(self, texts, images):
        return self.encode_queries(images, texts)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made_vectors(num_rows: int, num_topics: int, seed: int) -> np.ndarray:
    """Vectors (n, D), each near the centre of a topic; topics of one corpus are the same whatever the seed."""
    centres = np.random.default_rng(7).normal(size=(num_topics, DIM)).astype(np.float32)
    rng = np.random.default_rng([1, seed])
    noise = rng.standard_normal((num_rows, DIM), np.float32)
    return unit(centres[rng.integers(num_topics, size=num_rows)] + SPREAD * noise)


def made_table(num_rows: int) -> pa.Table:
    """Passages with an id and a text each, a block after the other."""
    parts = []
    for start in range(0, num_rows, BLOCK):
        numbers = pa.array(range(start, min(start + BLOCK, num_rows))).cast(pa.string())
        texts = pa.compute.binary_join_element_wise("Passage", numbers, "of a made-up encyclopaedia.", " ")
        columns = {"id": numbers, "text": texts.cast(pa.large_string())}
        parts.append(pa.table([columns.get(one.name, pa.nulls(len(numbers), one.type)) for one in SCHEMA], SCHEMA))
    return pa.concat_tables(parts)


def build(folder: Path, num_rows: int) -> dict[str, Any]:
    """Builds and stores one knowledge base, and says what it took."""
    topics = max(num_rows // ROWS_PER_TOPIC, 10)
    raw = folder / "vectors.npy"
    vectors = np.lib.format.open_memmap(raw, "w+", np.float32, (num_rows, DIM))
    for start in range(0, num_rows, BLOCK):
        count = min(BLOCK, num_rows - start)
        vectors[start : start + count] = made_vectors(count, topics, start + 1)
    vectors = np.load(raw, mmap_mode="r")
    queries = made_vectors(NUM_QUERIES, topics, 0)
    np.savez(folder / "queries.npz", queries=queries, exact=exact_search(queries, vectors, K)[1])
    knowledge_base, started = KnowledgeBase(made_table(num_rows)), time.process_time()
    retriever = RavlmRetriever(knowledge_base, NoEncoder(), vectors, index="auto")
    seconds = time.process_time() - started
    retriever.save_pretrained(folder)
    raw.unlink()
    size = sum(path.stat().st_size for path in (folder / "knowledge_base").rglob("*") if path.is_file())
    spec = retriever.index.spec
    return {"rows": num_rows, "build_s": seconds, "store_mb": size / 1e6, "index": spec.get("factory", spec["kind"])}


def use(folder: Path) -> dict[str, Any]:
    """Opens, asks and adds, in a process that has done nothing else."""
    encoder, before, started = NoEncoder(), own_bytes(), time.perf_counter()
    retriever = RavlmRetriever.from_pretrained(folder, encoder, verify="size")
    figures: dict[str, Any] = {"open_s": time.perf_counter() - started, "own_mb": (own_bytes() - before) / 1e6}
    data = np.load(folder / "queries.npz")
    queries = data["queries"]
    found = np.concatenate([retriever.index.search(queries[n : n + 1], K)[1] for n in range(NUM_QUERIES)])
    figures["recall"] = found_share(found, data["exact"])
    figures["search_ms"] = median_ms(lambda n: retriever.index.search(queries[n : n + 1], K))
    figures["retrieve_ms"] = median_ms(lambda n: retriever.search_vectors(queries[n : n + 1], 5))
    for name, first in (("first_add_s", 0), ("add_s", NUM_ADDED)):
        new = [{"id": f"new-{n}", "text": f"A new passage, {n * 'x'}"} for n in range(first, first + NUM_ADDED)]
        started = time.process_time()
        retriever.add(new)
        figures[name] = time.process_time() - started
    started = time.perf_counter()
    RavlmRetriever.from_pretrained(folder, encoder)
    return {**figures, "open_full_s": time.perf_counter() - started}


def median_ms(ask: Callable[[int], Any]) -> float:
    """The median CPU milliseconds of a call, on vectors that were read before."""
    times = []
    for number in [*range(NUM_QUERIES), *range(NUM_QUERIES)]:
        started = time.process_time()
        ask(number)
        times.append(1e3 * (time.process_time() - started))
    return statistics.median(times[NUM_QUERIES:])


def measure(num_rows: int, parent: Path | None) -> dict[str, Any]:
    """Builds in one process and uses in another; the figures of both."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        record: dict[str, Any] = {}
        for work in ("build", "use"):
            command = [sys.executable, __file__, "--worker", work, folder, "--rows", str(num_rows)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "TMPDIR": folder})
            record |= json.loads(done.stdout)
        shutil.rmtree(Path(folder) / "knowledge_base")
    return record


def markdown(records: list[dict[str, Any]]) -> str:
    """The table."""
    lines = ["| passages | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for record in records:
        cells = [record[name] if isinstance(record[name], str) else f"{record[name]:.3g}" for name in COLUMNS]
        cells = [f"{float(cell):,.0f}" if "e+" in cell else cell for cell in cells]
        lines.append(f"| {record['rows']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Growth against the number of passages, both by powers of ten."""
    shown = {"build_s": ("build (CPU s)", GREY), "open_full_s": ("open and verify (s)", FAINT),
             "first_add_s": ("first add of 100 (CPU s)", RED), "search_ms": ("search (CPU ms)", BLUE),
             "retrieve_ms": ("with passages (CPU ms)", GREEN)}  # fmt: skip
    xs = [math.log10(row["rows"]) for row in records]
    ys = {name: [math.log10(row[name]) for row in records] for name in shown}
    lowest, highest = math.floor(min(map(min, ys.values()))), math.ceil(max(map(max, ys.values())))
    first, last = math.floor(min(xs)), math.ceil(max(xs))
    image, sheet = canvas(*SIZE)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + WIDTH * (x - first) / max(last - first, 1),
            TOP + HEIGHT * (highest - y) / max(highest - lowest, 1),
        )

    for power in range(lowest, highest + 1):
        sheet.line([place(first, power), place(last, power)], fill=LINE)
        write(sheet, 8, round(place(first, power)[1]) - 7, f"{10.0**power:g}", 12, FAINT)
    for power in range(first, last + 1):
        sheet.line([place(power, lowest), place(power, highest)], fill=LINE)
        write(sheet, round(place(power, lowest)[0]) - 20, TOP + HEIGHT + 6, f"{10**power:,}", 12, FAINT)
    write(sheet, LEFT, TOP + HEIGHT + 24, "passages", 13, INK)
    for number, (name, (label, colour)) in enumerate(shown.items()):
        points = [place(x, y) for x, y in zip(xs, ys[name], strict=True)]
        sheet.line(points, fill=colour, width=2)
        for x, y in points:
            sheet.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        write(sheet, LEFT + WIDTH + 24, TOP + 22 * number, label, 13, colour)
    image.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder without it")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw them")
    parser.add_argument("--worker", nargs=2, metavar=("WORK", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    disable_progress_bar()
    if arguments.worker:
        work, folder = arguments.worker[0], Path(arguments.worker[1])
        print(json.dumps(build(folder, arguments.rows[0]) if work == "build" else use(folder)))
        return
    records = []
    for num_rows in arguments.rows:
        records.append(measure(num_rows, arguments.folder))
        print(records[-1], file=sys.stderr, flush=True)
    print(markdown(records))
    if arguments.output:
        arguments.output.write_text(json.dumps(records, indent=1) + "\n")
    if arguments.plot:
        draw(records, arguments.plot)


if __name__ == "__main__":
    main()
