"""`hf-ravlm index build` and `index add`: an estimate first, then work that can be resumed."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..retrieval import Encoder, IndexOptions, KnowledgeBase, RavlmRetriever, embed_corpus, estimate_embedding
from ..retrieval.encoding.cost import duration
from ..retrieval.indexes.index_choice import check_budget, estimate_index, suitable_kinds
from ..retrieval.passage import input_digest
from ..retrieval.retriever import check_groups
from ..retrieval.store.current import STAGING
from ..retrieval.store.versions import store_state, version_names
from .models import chosen_encoder
from .outcome import Outcome, size
from .sources import format_of, other_files, read_source


logger = logging.getLogger(__name__)

SUBFOLDER = "knowledge_base"


def build(arguments: argparse.Namespace) -> Outcome:
    """`index build`: reads, encodes, indexes and saves."""
    store = _place_of(arguments.out, arguments.overwrite)
    format_of(arguments)  # before a large model is loaded for nothing
    encoder = chosen_encoder(arguments)
    knowledge_base = read_source(arguments)
    check_groups(knowledge_base, arguments.group_by, arguments.group_query)
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
    grouping = (arguments.group_by, arguments.group_query)
    options = IndexOptions(arguments.index, arguments.memory_budget, arguments.recall, *grouping)
    retriever = RavlmRetriever(knowledge_base, encoder, vectors, fingerprint, options)
    retriever.save_pretrained(arguments.out, SUBFOLDER, overwrite=arguments.overwrite)
    dim, spec = retriever.index.dim, {**retriever.index.spec}
    record |= {"passages": len(knowledge_base), "skipped": len(knowledge_base.skipped), "dim": dim, "index": spec}
    record["encoder"] = {"name": encoder.name, "fingerprint": fingerprint}
    few = "" if arguments.index in ("auto", spec["kind"]) else ": few passages are searched exactly"
    text = (
        f"{len(knowledge_base):,} passages in {arguments.out} ({dim} dimensions, {spec['kind']} index{few}, encoder "
        f"{encoder.name!r})."
    )
    if num_processes == 1:
        shutil.rmtree(staging, ignore_errors=True)
    else:  # other processes may still be reading it
        text += f"\nWhen all processes have ended, {staging} can be deleted."
    return Outcome(record, text)


def add(arguments: argparse.Namespace) -> Outcome:
    """`index add`: encodes new passages and commits them."""
    format_of(arguments)
    encoder = chosen_encoder(arguments, arguments.folder)
    retriever = RavlmRetriever.from_pretrained(arguments.folder, encoder, SUBFOLDER)
    knowledge_base = read_source(arguments)
    before = len(retriever)
    change = retriever.update if arguments.update else retriever.add
    change(knowledge_base, batch_size=arguments.batch_size)
    read = {"read": len(knowledge_base), "skipped": len(knowledge_base.skipped)}
    return passages_now(arguments.folder, before, len(retriever), **read)


def passages_now(folder: Path, before: int, after: int, **more: int) -> Outcome:
    """How many passages a knowledge base has, and had."""
    record = {"folder": str(folder), **more, "passages_before": before, "passages": after}
    return Outcome(record, f"{after:,} passages in {folder}; there were {before:,}.")


def estimate_build(knowledge_base: KnowledgeBase, encoder: Encoder, arguments: argparse.Namespace) -> dict[str, Any]:
    """Says what building and searching will take, and warns if the disk is too small.

    Raises:
        InvalidInputError: If the memory budget does not suffice for the index.
    """
    cost = estimate_embedding(knowledge_base, encoder)
    dim = cost.dim
    num_passages, budget, kind = len(knowledge_base), arguments.memory_budget, arguments.index
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
        "%s passages of %d numbers, %s, encoded in about %s by one process. The passages take up to %s; on disk up to "
        "%s in all, %s while building (%s are free).",
        *(f"{num_passages:,}", dim, estimate, duration(cost.seconds)),
        *map(size, (passage_bytes, kept, needed, free)),
    )
    if needed > free:
        logger.warning("The disk of %s may be too small. Choose another OUT, or --staging on another disk.", existing)
    return {
        "passages": num_passages,
        "dim": dim,
        "encoding_seconds": round(cost.seconds, 1),
        "index": estimate.kind,
        "ram_bytes": estimate.ram_bytes,
        "index_bytes": estimate.disk_bytes,
        "vector_bytes": estimate.vector_bytes,
        "passage_bytes": passage_bytes,
        "disk_bytes_while_building": needed,
    }


def _place_of(out: Path, overwrite: bool) -> Path:
    """The folder of the store in OUT, which holds no knowledge base unless that is to be overwritten, nor a source."""
    if store_state(out) in ("whole", "broken"):
        raise InvalidInputError(
            f"{out} is itself a knowledge base. Name the folder above it, or add to it with `hf-ravlm index add`."
        )
    if out.exists() and not out.is_dir():
        raise InvalidInputError(f"{out} is a file. Name a folder for the knowledge base.")
    store = out.absolute() / SUBFOLDER
    stopped = not os.path.lexists(store / "CURRENT") and version_names(store) == ["gen-00000001"]  # or CURRENT is lost
    if store_state(store) in ("whole", "broken") and not overwrite and not stopped:
        raise InvalidInputError(
            f"{out} holds a knowledge base already. Add to it with `hf-ravlm index add`, mend it with `hf-ravlm index "
            "repair`, or replace it with --overwrite."
        )
    if not store.exists() and not (out / "config.json").is_file() and (others := other_files(out)):
        raise InvalidInputError(
            f"{out} holds other files ({others[0]}) and no model: a knowledge base among them would hide them. Name a "
            "new folder."
        )
    return store
