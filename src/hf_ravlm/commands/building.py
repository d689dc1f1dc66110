"""Knows how a knowledge base is built and grows from the command line, with an estimate first and resumable work."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..retrieval import INDEX_KINDS, Encoder, IndexOptions, KnowledgeBase, RavlmRetriever, embed_corpus
from ..retrieval.indexes.index_choice import check_budget, estimate_index, suitable_kinds
from ..retrieval.passage import input_digest
from ..retrieval.store.current import STAGING
from .encoder_choice import add_encoder_arguments, chosen_encoder
from .outcome import Outcome, size
from .sources import add_source_arguments, read_source


logger = logging.getLogger(__name__)

SUBFOLDER = "knowledge_base"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `index build`."""
    add_source_arguments(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder for the knowledge base; a model's will do")
    add_encoder_arguments(parser, required=True)
    group = parser.add_argument_group("building")
    group.add_argument(
        "--index", choices=INDEX_KINDS, default="auto", help="auto: by size, memory and recall (default)"
    )
    group.add_argument("--memory_budget", type=bytes_of, metavar="SIZE", help="memory for searching, such as 2GB")
    group.add_argument(
        "--recall", type=float, default=0.95, help="share of the exact ten best to find (default: 0.95)"
    )
    group.add_argument("--batch_size", type=int, default=64, help="images encoded at once (default: 64)")
    group.add_argument(
        "--staging",
        type=Path,
        metavar="FOLDER",
        help="for unfinished work, which is removed at the end (default: in OUT)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the knowledge base in OUT, in one step")


def add_add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `index add`."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder of the knowledge base")
    add_source_arguments(parser)
    add_encoder_arguments(parser)
    parser.add_argument(
        "--update", action="store_true", help="replace passages with the same ids instead of refusing them"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images encoded at once (default: 64)")


def build(arguments: argparse.Namespace) -> Outcome:
    """`index build`: reads, encodes, indexes and saves."""
    store = _place_of(arguments.out, arguments.overwrite)
    encoder = chosen_encoder(arguments)
    knowledge_base = read_source(arguments)
    estimate = estimate_build(knowledge_base, encoder, arguments)
    fingerprint = encoder.fingerprint
    # A folder that is this build's alone: at the end it is deleted with all that is in it.
    staging = store / STAGING / "build"
    if arguments.staging is not None:
        staging = arguments.staging / f"build-{input_digest(knowledge_base.table)[:20]}"
    vectors = embed_corpus(knowledge_base, encoder, batch_size=arguments.batch_size, staging=staging)
    rank, num_processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    record: dict[str, Any] = {"folder": str(arguments.out), "estimate": estimate, "process": [rank, num_processes]}
    if rank != 0:  # the first process saves
        return Outcome(record, f"Process {rank + 1} of {num_processes} has encoded its share.")
    options = IndexOptions(arguments.index, arguments.memory_budget, arguments.recall)
    retriever = RavlmRetriever(knowledge_base, encoder, vectors, fingerprint, options)
    retriever.save_pretrained(arguments.out, SUBFOLDER)
    record |= {
        "passages": len(knowledge_base),
        "skipped": len(knowledge_base.skipped),
        "dim": retriever.index.dim,
        "index": {**retriever.index.spec},
        "encoder": {"name": encoder.name, "fingerprint": fingerprint},
    }
    text = (
        f"{len(knowledge_base):,} passages in {arguments.out} ({retriever.index.dim} dimensions, "
        f"{retriever.index.spec['kind']} index, encoder {encoder.name!r})."
    )
    if num_processes == 1:
        shutil.rmtree(staging, ignore_errors=True)
    else:  # other processes may still be reading it
        text += f"\nWhen all processes have ended, {staging} can be deleted."
    return Outcome(record, text)


def add(arguments: argparse.Namespace) -> Outcome:
    """`index add`: encodes new passages and commits them."""
    encoder = chosen_encoder(arguments, arguments.folder)
    retriever = RavlmRetriever.from_pretrained(arguments.folder, encoder, SUBFOLDER)
    knowledge_base = read_source(arguments)
    before = len(retriever)
    change = retriever.update if arguments.update else retriever.add
    change(knowledge_base, batch_size=arguments.batch_size)
    record = {
        "folder": str(arguments.folder),
        "read": len(knowledge_base),
        "skipped": len(knowledge_base.skipped),
        "passages_before": before,
        "passages": len(retriever),
    }
    return Outcome(record, f"{len(retriever):,} passages in {arguments.folder}; there were {before:,}.")


def estimate_build(knowledge_base: KnowledgeBase, encoder: Encoder, arguments: argparse.Namespace) -> dict[str, Any]:
    """Says what building and searching will take, and warns if the disk is too small; the width is tried out.

    Raises:
        InvalidInputError: If the memory budget does not suffice for the index.
    """
    first = knowledge_base[0]
    dim = int(encoder.encode_passages([first.text], [first.image]).shape[1])
    num_passages, budget = len(knowledge_base), arguments.memory_budget
    kind = arguments.index
    if kind == "auto":
        kind = suitable_kinds(num_passages, dim, budget, arguments.recall)[0]
    estimate = estimate_index(num_passages, dim, kind)
    check_budget(estimate, budget)
    passage_bytes = int(knowledge_base.table.nbytes)
    kept = passage_bytes + estimate.vector_bytes + estimate.disk_bytes
    needed = kept + 2 * estimate.vector_bytes  # once in shards and once joined, until they are saved
    existing = next(place for place in (arguments.out.absolute(), *arguments.out.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    logger.info(
        "%s passages of %d numbers, %s. The passages take up to %s; on disk up to %s in all, %s while building "
        "(%s are free).",
        f"{num_passages:,}",
        dim,
        estimate,
        size(passage_bytes),
        size(kept),
        size(needed),
        size(free),
    )
    if needed > free:
        logger.warning("The disk of %s may be too small. Choose another OUT, or --staging on another disk.", existing)
    return {
        "passages": num_passages,
        "dim": dim,
        "index": estimate.kind,
        "ram_bytes": estimate.ram_bytes,
        "index_bytes": estimate.disk_bytes,
        "vector_bytes": estimate.vector_bytes,
        "passage_bytes": passage_bytes,
        "disk_bytes_while_building": needed,
    }


def bytes_of(text: str) -> int:
    """A number of bytes, as people write it.

    >>> bytes_of("1.5GB"), bytes_of("800 MB"), bytes_of("4096")
    (1500000000, 800000000, 4096)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match.group(2).upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected one such as 800MB or 2GB")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])


def _place_of(out: Path, overwrite: bool) -> Path:
    """The folder of the store in OUT, which must be empty unless it is to be overwritten."""
    if (out / "CURRENT").exists():
        raise InvalidInputError(
            f"{out} is itself a knowledge base. Name the folder above it, or add to it with `hf-ravlm index add`."
        )
    if out.exists() and not out.is_dir():
        raise InvalidInputError(f"{out} is a file. Name a folder for the knowledge base.")
    if (out / SUBFOLDER / "CURRENT").exists() and not overwrite:
        raise InvalidInputError(
            f"{out} holds a knowledge base already. Add to it with `hf-ravlm index add`, or replace it with "
            "--overwrite."
        )
    return out / SUBFOLDER
