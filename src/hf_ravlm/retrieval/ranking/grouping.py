"""Search by group: what is asked about is found first, and then what is known of it.

Knowledge about things (countries, species, products) is often many passages a thing. A question about an image then
has two halves: the image says which thing it is, and the words say which of its passages answers. Who compares both
at once with every passage finds the wrong one as soon as the words are unusual.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .channels import Query, QueryPart
from .fusion import Ranking, ranking_from_lists
from .search_options import SearchOptions


Find = Callable[[Sequence[Query], SearchOptions], Ranking]
ConditionsAt = Callable[[Sequence[int]], list[dict[str, Any]]]

# Where several groups are asked for: how many passages each is expected to have; and how much farther it is looked
# where they have more.
_PASSAGES_PER_GROUP, _FARTHER = 8, 4


def search_groups(
    find: Find, queries: Sequence[Query], options: SearchOptions, conditions_at: ConditionsAt
) -> Ranking:
    """Finds the best groups of every query and then their passages, those of the best group first.

    A group is as good as its best passage.

    Args:
        find: Searches passages; the options that it gets have no `group_by`.
        queries: The queries.
        options: What to do, with `group_by`.
        conditions_at: For passages in some rows the condition (as in `where`) that all passages of its group fulfil.
    """
    asked = [_part(query, options.group_query) for query in queries]
    best = _best_groups(find, asked, options, conditions_at)
    places_of: dict[str, list[int]] = {}  # queries that want one group are searched together
    for place, groups in enumerate(best):
        for group in groups:
            places_of.setdefault(group, []).append(place)
    found = {}
    for group, places in places_of.items():
        where = {**(options.where or {}), **json.loads(group)}
        ranking = find([queries[place] for place in places], replace(options, group_by=None, where=where))
        for place, scores, rows in zip(places, *ranking, strict=True):
            found[place, group] = scores[rows >= 0], rows[rows >= 0]
    lists = []
    for place, groups in enumerate(best):
        parts = [found[place, group] for group in groups] or [(np.zeros(0, np.float32), np.zeros(0, np.int64))]
        scores, rows = (np.concatenate(column)[: options.k] for column in zip(*parts, strict=True))
        lists.append((scores, rows))
    return ranking_from_lists(lists)


def _best_groups(
    find: Find, queries: Sequence[Query], options: SearchOptions, conditions_at: ConditionsAt
) -> list[list[str]]:
    """The groups of each query, best first, by their conditions as JSON."""
    number = 1 if options.num_groups == 1 else options.num_groups * _PASSAGES_PER_GROUP
    plain = replace(options, group_by=None, mmr_lambda=None, near_duplicate_threshold=None, max_per_source=None)
    while True:
        ranking = find(queries, replace(plain, k=number))
        listed = [rows[rows >= 0].tolist() for rows in ranking.rows]
        groups = iter(map(json.dumps, conditions_at([row for rows in listed for row in rows])))
        best = [list(dict.fromkeys(next(groups) for _ in rows))[: options.num_groups] for rows in listed]
        if all(len(one) == options.num_groups or len(rows) < number for one, rows in zip(best, listed, strict=True)):
            return best
        number *= _FARTHER


def _part(query: Query, part: QueryPart) -> Query:
    """The part of a query that finds its group; the whole query where it has no such part."""
    text = query.text if part != "image" else None
    image = query.image if part != "text" else None
    return query if part == "both" or (text is None and image is None) else Query(text, image)
