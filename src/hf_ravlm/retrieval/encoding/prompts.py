"""Prompts that a model of sentence-transformers says are to stand before queries and before passages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


# What models call them, best first: sentence-transformers itself, Nomic, Jina.
_NAMES = (
    ("query", "search_query", "retrieval.query"),
    ("document", "passage", "search_document", "retrieval.passage", "retrieval.document", "corpus"),
)


def stored_prompts(prompts: Mapping[str, Any] | None, default_name: str | None) -> tuple[str | None, str | None]:
    """Returns the prompts of queries and of passages out of `config_sentence_transformers.json`; `None` for none.

    >>> stored_prompts({"search_query": "search_query: ", "search_document": "search_document: "}, None)
    ('search_query: ', 'search_document: ')
    >>> stored_prompts({"query": "query: ", "sts": "compare: "}, "sts")
    ('query: ', 'compare: ')
    """
    known = {name: str(prompt) for name, prompt in (prompts or {}).items() if prompt is not None}
    default = known.get(default_name) if default_name else None
    query, passage = (_first(known, names, default) for names in _NAMES)
    return query, passage


def _first(known: Mapping[str, str], names: tuple[str, ...], default: str | None) -> str | None:
    """The first prompt with words; sentence-transformers adds empty ones of its own names."""
    found = [known[name] for name in names if name in known]
    return next((prompt for prompt in found if prompt), "" if found else default)
