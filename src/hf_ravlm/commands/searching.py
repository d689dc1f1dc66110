"""`hf-ravlm index search`; by words alone it needs no model."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..numbers_given import check_whole
from ..retrieval import KnowledgeBase, Passage, RavlmRetriever
from ..retrieval.evidence import checked_queries
from ..retrieval.indexes.lexical_index import LexicalIndex, searchable_texts
from ..retrieval.ranking.channels import LexicalChannel
from ..retrieval.ranking.search import search as search_channels
from ..retrieval.ranking.search_options import SearchOptions
from .building import SUBFOLDER
from .models import chosen_encoder
from .outcome import Outcome, one_line


_SHOWN = ("id", "title", "text", "source", "licence", "url", "revision", "metadata")


def search(arguments: argparse.Namespace) -> Outcome:
    """`index search`: the best passages for a text, an image, or both.

    Raises:
        InvalidInputError: There is nothing to search for, no such image, `-k` is none, or `--where` is no JSON object.
    """
    if arguments.text is None and arguments.image is None:
        raise InvalidInputError("There is nothing to search for. Give a text, or --image.")
    if arguments.image is None and (arguments.region or arguments.crops):
        raise InvalidInputError("--region and --crops are parts of an image. Give --image, too.")
    if arguments.image is not None and not arguments.image.is_file():
        raise InvalidInputError(f"--image {arguments.image}: there is no such file.")
    check_whole("k", arguments.k, lowest=1)
    where = conditions(arguments.where)
    named = arguments.channels or [list(arguments.weights or ["dense"])]
    arguments.channels = list(dict.fromkeys(name for part in named for name in part))
    hub = {"repo_type": arguments.repo_type}
    if arguments.revision is not None:
        hub["revision"] = arguments.revision
    if arguments.channels == ["bm25"]:
        found = _search_words(arguments, where, hub)
    else:
        folder = Path(arguments.folder) if os.path.isdir(arguments.folder) else None
        # What lies on the Hub names its encoder, or brings its own model, from the same commit.
        brings_model = folder is None and arguments.model is None
        encoder = None if brings_model else chosen_encoder(arguments, folder)
        retriever = RavlmRetriever.from_pretrained(arguments.folder, encoder, SUBFOLDER, **hub)
        ranking = {"where": where, "channels": arguments.channels, "weights": arguments.weights}
        ranking |= {"region": arguments.region, "crops": arguments.crops}
        (results,) = retriever.retrieve(arguments.image, arguments.text, arguments.k, **ranking)
        found = [(evidence, evidence.ranking_score, evidence.score) for evidence in results]
    records = [_record(rank, *one) for rank, one in enumerate(found, start=1)]
    query = {"text": arguments.text, "image": arguments.image and os.fspath(arguments.image)}
    record = {"query": query, "where": where, "channels": arguments.channels, "results": records}
    return Outcome(record, "\n".join(map(_lines, records)) or "Nothing was found.")


def _search_words(
    arguments: argparse.Namespace, where: dict[str, Any] | None, hub: dict[str, Any]
) -> list[tuple[Passage, float, float | None]]:
    knowledge_base = KnowledgeBase.from_pretrained(arguments.folder, SUBFOLDER, **hub)
    channel = LexicalChannel(LexicalIndex.build(searchable_texts(knowledge_base.table)))
    options = SearchOptions(k=arguments.k, channels=("bm25",), where=where)
    queries = checked_queries(arguments.image, arguments.text)
    ranking = search_channels({"bm25": channel}, queries, options, knowledge_base)
    rows, scores = ranking.rows[0].tolist(), ranking.scores[0].tolist()
    found = [(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
    passages = knowledge_base.passages([row for row, _ in found])
    return [(passage, score, None) for passage, (_, score) in zip(passages, found, strict=True)]


def conditions(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        where = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(
            f"--where {text}: not JSON ({error}). Expected, in single quotes for the shell, something such as "
            '\'{"source": ["birds", "fish"]}\'.'
        ) from error
    if not isinstance(where, dict):
        raise InvalidInputError(f'--where {text}: expected a JSON object such as {{"source": "birds"}}.')
    return where


def _record(rank: int, passage: Passage, ranking_score: float, cosine: float | None) -> dict[str, Any]:
    scores = {"rank": rank, "ranking_score": ranking_score, "score": cosine}
    fields = {name: getattr(passage, name) for name in _SHOWN}
    return {**scores, **fields, "has_image": passage.image_bytes is not None}


def _lines(record: dict[str, Any]) -> str:
    origin = ", ".join(one_line(record[name]) for name in ("source", "licence", "url") if record[name])
    text = one_line(record["text"] or "")
    text = text if len(text) <= 300 else f"{text[:300]} ..."
    image = " (image)" if record["has_image"] else ""
    lines = [f"{record['rank']}. {record['ranking_score']:.4f}  {one_line(record['id'])}{image}"]
    lines += [f"   {line}" for line in (one_line(record["title"] or ""), text, origin and f"[{origin}]") if line]
    return "\n".join(lines)
