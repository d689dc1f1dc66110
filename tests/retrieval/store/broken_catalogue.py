"""A catalogue with broken rows, made into a knowledge base and changed by processes that are killed.

    python broken_catalogue.py FOLDER 20000

A build is killed in the middle and run again; then two writers change the stored catalogue at once, one of them is
killed at any moment and goes on from what it had finished. It prints one JSON object, which `test_size` judges.
"""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


sys.path.insert(0, str(Path(__file__).parents[2]))

from hash_encoder import HashEncoder
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever, verify_store


EVERY = 20  # rows, five of which are broken, each in its own way
NOT_JSON, NO_IMAGE, BROKEN_IMAGE, REPEATED, EMPTY = 3, 7, 11, 13, 17
NUM_IMAGES = 8
NUM_CHANGES = 6  # of each writer


class KilledEncoder(HashEncoder):
    """Kills its process once it has encoded enough."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def encode_passages(self, texts, images):
        if self.num_encoded >= self.most:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_passages(texts, images)


def text_of(number: int, tag: str = "first") -> str:
    return f"topic{number % 97} article {number} of the catalogue, {tag} text"


def write_catalogue(folder: Path, num_rows: int) -> dict[str, str]:
    """Writes the catalogue with its images; returns the texts that must be found afterwards, by id."""
    (folder / "images").mkdir(parents=True)
    for number in range(NUM_IMAGES):
        Image.new("RGB", (16, 16), (30 * number, 100, 200)).save(folder / "images" / f"{number}.png")
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "PNG")
    (folder / "images" / "broken.png").write_bytes(data.getvalue()[:40])
    wanted = {}
    with open(folder / "catalogue.jsonl", "w", encoding="utf-8") as file:
        for number in range(num_rows):
            row = {"id": f"article-{number}", "text": text_of(number), "image": f"images/{number % NUM_IMAGES}.png"}
            kind = number % EVERY
            if kind == NO_IMAGE:
                row["image"] = "images/nowhere.png"
            elif kind == BROKEN_IMAGE:
                row["image"] = "images/broken.png"
            elif kind == REPEATED:
                row["id"] = f"article-{number - 1}"
            elif kind == EMPTY:
                row["text"], row["image"] = " ", None
            if kind not in (NOT_JSON, REPEATED, EMPTY):
                wanted[row["id"]] = row["text"]
            file.write(json.dumps(row)[: 30 if kind == NOT_JSON else None] + "\n")
    return wanted


def build(folder: Path, encoder: HashEncoder) -> None:
    """Reads the catalogue, and goes on with a build that was killed."""
    source, report = folder / "catalogue.jsonl", folder / "report.jsonl"
    knowledge_base = KnowledgeBase.from_jsonl(source, on_error="keep_text", report_file=report)
    retriever = RavlmRetriever.build(knowledge_base, encoder, 16, staging=folder / "staging")
    retriever.save_pretrained(folder)
    (folder / "encoded").write_text(str(encoder.num_encoded))


def changes_of(writer: int, num_rows: int) -> list[tuple[list[dict], str]]:
    """The changes of one writer: articles that are updated or new, and the id of one that is removed then."""
    size = max(num_rows // 20 // NUM_CHANGES, 2)
    changes = []
    for change in range(NUM_CHANGES):
        first = num_rows * 10 + (2 * change + writer) * size
        rows = [{"id": f"article-{n}", "text": text_of(n, "second")} for n in range(first, first + size)]
        updated = EVERY * (2 * change + writer)
        rows.append({"id": f"article-{updated}", "text": text_of(updated, "second")})
        changes.append((rows, rows[0]["id"]))
    return changes


def write(folder: Path, writer: int, num_rows: int) -> None:
    """Makes all changes of a writer that are not noted as done; what was done and not noted is done again."""
    log = folder / f"writer-{writer}"
    done = len(log.read_text().splitlines()) if log.exists() else 0
    retriever = RavlmRetriever.from_pretrained(folder, encoder=HashEncoder(), verify="size")
    with log.open("a") as noted:
        for rows, removed in changes_of(writer, num_rows)[done:]:
            retriever.update(rows)
            retriever.remove([removed])
            noted.write("done\n")
            noted.flush()


def started(work: Callable[[], None], trouble: Path) -> int:
    """Runs `work` in a process of its own; returns its number."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            trouble.write_text(traceback.format_exc())
            os._exit(1)
    return child


def killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def run(folder: Path, num_rows: int) -> dict:
    wanted, trouble, begun = write_catalogue(folder, num_rows), folder / "trouble", time.monotonic()
    report: dict = {"statuses": []}
    first = os.waitpid(started(lambda: build(folder, KilledEncoder(len(wanted) // 2)), trouble), 0)[1]
    report["build_was_killed"] = killed(first)
    report["statuses"].append(os.waitpid(started(lambda: build(folder, HashEncoder()), trouble), 0)[1])
    report["share_encoded_again"] = int((folder / "encoded").read_text()) / len(wanted)
    report["left_out"] = len((folder / "report.jsonl").read_text().splitlines())
    report["broken"] = sum(n % EVERY in (NOT_JSON, NO_IMAGE, BROKEN_IMAGE, REPEATED, EMPTY) for n in range(num_rows))

    writers = [started(lambda writer=writer: write(folder, writer, num_rows), trouble) for writer in (0, 1)]
    log = folder / "writer-0"
    while not log.exists() or len(log.read_text().splitlines()) < NUM_CHANGES // 3:
        time.sleep(0.002)
    os.kill(writers[0], signal.SIGKILL)
    report["writer_was_killed"] = killed(os.waitpid(writers[0], 0)[1])
    again = started(lambda: write(folder, 0, num_rows), trouble)
    report["statuses"] += [os.waitpid(child, 0)[1] for child in (again, writers[1])]
    for writer in (0, 1):
        for rows, removed in changes_of(writer, num_rows):
            wanted |= {row["id"]: row["text"] for row in rows}
            del wanted[removed]
    report |= {"trouble": trouble.read_text() if trouble.exists() else "", **seen(folder, wanted)}
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {**report, "largest_process_mb": usage.ru_maxrss // 1024, "seconds": round(time.monotonic() - begun, 1)}


def seen(folder: Path, wanted: dict[str, str]) -> dict:
    """How what is stored differs from what is wanted."""
    verified = verify_store(folder / "knowledge_base")
    retriever = RavlmRetriever.from_pretrained(folder, encoder=HashEncoder())
    table = retriever.knowledge_base.table
    found = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    vectors = HashEncoder().encode_passages(list(found.values()), None)
    return {
        "verified": verified["ok"],
        "passages": len(found),
        "wrong": sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))[:5],
        "wrong_vectors": int((np.abs(vectors - retriever.vectors).max(axis=1) > 1e-6).sum()),
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.stdout.write(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
