"""What goes into a search and what comes out of it: checked questions and images, passages with scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ..errors import InvalidInputError, naming
from ..images import crop_region, detailed_crops, safe_image
from ..sequences import is_column, listed
from ..text import clean_text, plain_text
from .encoding.encoders import Encoder
from .passage import Passage
from .ranking.channels import Query, query_vectors
from .ranking.fusion import Ranking
from .ranking.search import SearchedKnowledge
from .ranking.search_options import SearchOptions
from .unit_vectors import unit_vectors


@dataclass(frozen=True)
class Evidence(Passage):
    """A passage that was found, with its place in the ranking; all attributes of `Passage`, and:

    Attributes:
        score: The cosine of the angle between query and passage, from -1 to 1, however the passage was found: what
            a reader may take for the retriever's belief.
        ranking_score: What the order rests on: the cosine again, or the score of several channels or a reranker.
        rank: 1 for the best.
    """

    score: float = field(default=0.0, kw_only=True)
    ranking_score: float = field(default=0.0, kw_only=True)
    rank: int = field(default=1, kw_only=True)


def checked_queries(images: Any, texts: Any) -> list[Query]:
    """One query per image and text, each of which has at least one of them.

    Args:
        images: One image per query, anything that `safe_image` takes; a single one is a batch of one. `None` for no
            images at all, or in single places.
        texts: One question per query; likewise.

    Raises:
        InvalidInputError: If a query has neither image nor text, or the lists differ in length.
        UnsafeInputError: If an image cannot be used.
    """
    if images is None and texts is None:
        raise InvalidInputError("There is no query. Pass `images`, `texts`, or both.")
    image_list, text_list = (None if given is None else listed(given) for given in (images, texts))
    if image_list is not None and text_list is not None and len(image_list) != len(text_list):
        raise InvalidInputError(
            f"{len(image_list)} images came with {len(text_list)} texts. Pass one of each per query; `None` stands "
            "for a missing one."
        )
    missing = [None] * len(image_list if image_list is not None else text_list or [])
    queries = []
    for row, (image, text) in enumerate(zip(image_list or missing, text_list or missing, strict=True)):
        if text is not None and not isinstance(text, str):
            raise InvalidInputError(
                f"The text of query {row} is of type {type(text).__name__}. Expected a string or None."
            )
        name = f"The text of query {row}"
        text = None if text is None or not clean_text(text, name) else plain_text(text, name)
        if image is None and text is None:
            raise InvalidInputError(
                f"Query {row} is empty: it has no image, and no text that can be seen. Ask something."
            )
        with naming(f"The image of query {row}"):
            queries.append(Query(text, None if image is None else safe_image(image)))
    return queries


def parts_of_images(queries: list[Query], region: Any) -> list[Query]:
    """The queries with the parts of their images in a region, or in one for each of them.

    Raises:
        InvalidInputError: If a region is none, a list has another length, or a query with a region has no image.
    """
    if region is None:
        return queries
    is_one = not is_column(region) or (len(region) > 0 and all(isinstance(edge, (int, float)) for edge in region))
    regions = [region] * len(queries) if is_one else list(region)
    if len(regions) != len(queries):
        raise InvalidInputError(f"{len(regions)} regions came with {len(queries)} queries. Pass one for all, or each.")
    cut = []
    for row, (query, part) in enumerate(zip(queries, regions, strict=True)):
        if part is None:
            cut.append(query)
        elif query.image is None:
            raise InvalidInputError(f"Query {row} has a region and no image. Pass its image, or None for the region.")
        else:
            cut.append(replace(query, image=crop_region(query.image, part), vectors={}))
    return cut


def look_closer(encoder: Encoder, queries: list[Query], number: int) -> None:
    """Gives queries with an image the mean vector of the image and of its most detailed parts, each with the text.

    Raises:
        InvalidInputError: If the number of parts is out of range.
    """
    for query in queries:
        if query.image is not None:
            looks = [Query(query.text, image) for image in (query.image, *detailed_crops(query.image, number))]
            mean = query_vectors(encoder, looks).mean(axis=0, keepdims=True)
            query.vectors[id(encoder)] = unit_vectors(mean, "query vectors")[0]


def checked_options(**options: Any) -> SearchOptions:
    """The options of a search; `InvalidInputError` if one is no field of `SearchOptions` or has a wrong value."""
    try:
        return SearchOptions(**options)
    except TypeError as error:
        raise InvalidInputError(f"{error}. The options are the fields of `SearchOptions`.") from error


def cosines_of(encoder: Encoder, queries: Sequence[Query], vectors: np.ndarray, ranking: Ranking) -> np.ndarray:
    """The cosines of queries with the passages found for them, (n, k); meaningless where no candidate is.

    Args:
        encoder: Encodes queries that no dense channel has encoded.
        queries: The queries.
        vectors: Unit vectors of all passages, (N, D).
        ranking: What was found, (n, k).
    """
    if ranking.rows.size == 0:
        return np.zeros(ranking.rows.shape, np.float32)
    asked = query_vectors(encoder, queries)  # (n, D)
    cosines: np.ndarray = np.einsum("nd,nkd->nk", asked, vectors[np.maximum(ranking.rows, 0)])
    return cosines


def evidence_of(knowledge: SearchedKnowledge, ranking: Ranking, cosines: np.ndarray) -> list[list[Evidence]]:
    """The passages of a ranking over rows, a list per query; `cosines` as of `cosines_of`."""
    valid = ranking.rows >= 0
    unique, places = np.unique(ranking.rows[valid], return_inverse=True)
    passages = [
        {item.name: getattr(passage, item.name) for item in fields(passage)}
        for passage in knowledge.passages(unique.tolist())
    ]
    place_of = np.full(ranking.rows.shape, -1)
    place_of[valid] = places
    return [
        [
            Evidence(**passages[place], score=float(cosine), ranking_score=float(score), rank=rank)
            for rank, (place, score, cosine) in enumerate(zip(*of_query, strict=True), start=1)
            if place >= 0
        ]
        for of_query in zip(place_of.tolist(), ranking.scores, cosines, strict=True)
    ]
