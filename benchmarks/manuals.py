"""PDF files of people: pages read per second, and whether the page behind a heading is found by its words.

    apt-get download libtasn1-doc freefem-doc python-reportlab-doc ...   (packages that ship a PDF)
    for package in *.deb; do dpkg-deb -x $package files; done
    python benchmarks/manuals.py files

Questions are made of the bookmarks of the files that stand there once and have two words or more: "What is said about
HEADING?". Right is the page that the bookmark points to. The search is by words (BM25), with headings in front of each
piece, as `from_pdf` does by itself, and without.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
from transformers.utils.logging import disable_progress_bar

from hf_ravlm.retrieval import Chunking, KnowledgeBase, RavlmRetriever
from hf_ravlm.retrieval.sources.pdf.document import open_pdf


NUMBER = re.compile(r"^(Chapter|Appendix)?\s*[\dA-Z.]*\d[\d.]*\s+")
WAYS = {
    "text, with headings": {"pages": "text"},
    "text, without headings": {"pages": "text", "chunking": Chunking(1000)},
    "text, pages and figures": {"pages": "both"},
}


class NoEncoder:
    """A search by words needs no vectors."""

    name, fingerprint = "none", "0" * 64

    def encode_queries(self, images, texts):
        return np.tile(np.float32([1, 0]), (len(texts), 1))

    def encode_passages(self, texts, images):
        return self.encode_queries(images, texts)


def questions_of(files: list[Path]) -> tuple[list[tuple[str, str, int]], int]:
    """Headings with their file and page, counted from 1; and the number of pages of all files."""
    found, num_pages = [], 0
    for path in files:
        with open_pdf(path, path.name) as pdf:
            num_pages += len(pdf)
            found += [(NUMBER.sub("", mark.title), path.name, mark.page + 1) for mark in pdf.bookmarks()]
    counts = Counter(heading for heading, _, _ in found)
    return [row for row in found if counts[row[0]] == 1 and len(row[0].split()) > 1], num_pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    disable_progress_bar()
    files = sorted(arguments.folder.rglob("*.pdf"))
    questions, num_pages = questions_of(files)
    print(f"{len(files)} files, {num_pages} pages, {len(questions)} questions\n")
    print("| read as | passages | pages per CPU s | hit@1 | hit@5 | hit@10 |\n|---|---|---|---|---|---|")
    for name, options in WAYS.items():
        started = time.process_time()
        knowledge_base = KnowledgeBase.from_pdf(arguments.folder, on_error="skip", **options)
        rate = num_pages / (time.process_time() - started)
        retriever = RavlmRetriever.build(knowledge_base, NoEncoder())
        asked = [f"What is said about {heading}?" for heading, _, _ in questions]
        found = retriever.retrieve(texts=asked, k=10, channels=["bm25"])
        right = np.array(
            [
                [one.metadata["page"] == page and Path(one.source).name == file for one in row]
                for row, (_, file, page) in zip(found, questions, strict=True)
            ]
        )
        hits = " | ".join(f"{right[:, :k].any(axis=1).mean():.3f}" for k in (1, 5, 10))
        print(f"| {name} | {len(knowledge_base):,} | {rate:.0f} | {hits} |", flush=True)


if __name__ == "__main__":
    main()
