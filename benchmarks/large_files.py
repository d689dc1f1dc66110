"""A JSONL file of many gigabytes: read, embedded, stored, verified, opened, searched, and what each takes.

    python benchmarks/large_files.py --folder /data/scratch --gigabytes 5

The encoder costs next to nothing, so that what is measured is ours. Every step tells its seconds and the memory of the
process at its end and at its worst: `own` is what the process alone must have (`RssAnon` of Linux, sampled), `with
mapped files` is the largest resident size (`ru_maxrss`), which counts pages of files that the system may drop at any
time. Needs about three times the size of the file on the disk, and removes it all at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any


os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import numpy as np
import pyarrow as pa
from transformers.utils.logging import disable_progress_bar

from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever, verify_store


DIM = 64
GOAL = 1e9


class CheapEncoder:
    """A vector from the length of a text and its first characters."""

    name, fingerprint = "cheap", "c" * 64

    def encode_queries(self, images, texts):
        heads = np.frombuffer(b"".join(text.encode()[:DIM].ljust(DIM) for text in texts), np.uint8)
        vectors = heads.reshape(-1, DIM).astype(np.float32) - 80
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_passages(self, texts, images):
        return self.encode_queries(images, texts)


class Memory:
    """What the process alone has, sampled twenty times a second while the block runs."""

    def __enter__(self):
        self.stop, self.peak = threading.Event(), 0
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()
        return self

    def sample(self):
        while not self.stop.wait(0.05):
            self.peak = max(self.peak, own_bytes())

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        self.peak = max(self.peak, own_bytes())


def own_bytes() -> int:
    """The private memory of this process, without mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def write_file(path: Path, num_bytes: int, text_bytes: int) -> int:
    """Writes rows with texts of so many letters, each one of its own; returns how many."""
    chance = random.Random(0)
    words = ["".join(chance.choices("aeioubcdfglmnprst", k=chance.randint(2, 9))) for _ in range(20_000)]
    bodies = [" ".join(chance.choices(words, k=text_bytes // 6)) for _ in range(2_000)]
    written = rows = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < num_bytes:
            text = f"{chance.getrandbits(64):016x} {bodies[rows % len(bodies)]}"
            written += file.write(f'{{"id": "passage-{rows}", "text": "{text}", "licence": "CC0-1.0"}}\n')
            rows += 1
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder without it")
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--text_bytes", type=int, default=5_000)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        tempfile.tempdir = folder  # the rows wait on the same disk
        steps = measure(Path(folder), arguments)
    print("| step | s | own memory, MB | with mapped files, MB |\n|---|---|---|---|")
    for step in steps:
        print(f"| {step['step']} | {step['seconds']:.0f} | {step['own_mb']:.0f} | {step['resident_mb']:.0f} |")
    peak = max(step["own_mb"] for step in steps)
    print(f"\nlargest own memory {peak:.0f} MB (goal: less than {GOAL / 1e6:.0f} MB)")
    if arguments.output:
        arguments.output.write_text(json.dumps(steps, indent=1) + "\n")


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per step."""
    source, store, encoder = folder / "rows.jsonl", folder / "store", CheapEncoder()
    num_rows = write_file(source, int(arguments.gigabytes * 1e9), arguments.text_bytes)
    steps: list[dict[str, Any]] = []

    def step(name: str, work: Any) -> Any:
        started = time.perf_counter()
        with Memory() as memory:
            result = work()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        steps.append(
            {
                "step": name,
                "seconds": time.perf_counter() - started,
                "own_mb": memory.peak / 1e6,
                "resident_mb": resident / 1e6,
                "arrow_mb": pa.total_allocated_bytes() / 1e6,
            }
        )
        print(steps[-1], flush=True)
        return result

    step("start", lambda: None)
    knowledge_base = step(f"read {num_rows:,} rows", partial(KnowledgeBase.from_jsonl, source))
    build = partial(RavlmRetriever.build, knowledge_base, encoder, staging=folder / "staging")
    retriever = step("embed", build)
    step("store", partial(retriever.save_pretrained, store))
    del retriever, knowledge_base, build
    shutil.rmtree(folder / "staging")
    source.unlink()
    report = step("verify", partial(verify_store, store / "knowledge_base"))
    if not report["ok"] or report["passages"] != num_rows:
        raise RuntimeError(f"the store is not whole: {report}")
    retriever = step("open", partial(RavlmRetriever.from_pretrained, store, encoder, verify="size"))
    step("answer 100 queries", partial(retriever.retrieve, texts=[f"{n:016x}" for n in range(100)]))
    more = [{"id": f"more-{n}", "text": f"{n:016x} more"} for n in range(10)]
    step("add 10 passages", partial(retriever.add, more))
    return steps


if __name__ == "__main__":
    main()
