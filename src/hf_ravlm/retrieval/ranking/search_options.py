"""What a search does beside finding what is nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidInputError
from ...numbers_given import check_between, check_whole
from .channels import QueryPart
from .fusion import Normalisation, check_weights
from .rerank import Reranker


@dataclass(frozen=True)
class SearchOptions:
    """What a search does beside finding what is nearest.

    Attributes:
        k: How many passages to return per query.
        channels: The names of the channels to ask.
        num_candidates: How many candidates each channel gives, and how many are reranked; at least `k`.
        weights: A weight per channel, as `learn_weights` finds them; `None` joins by reciprocal rank.
        normalise: How scores are brought to one scale before they are weighted.
        where: Which passages may be found, see `filters.matching_rows`; `None` for all.
        reranker: Scores candidates anew; `None` for none.
        rerank_mix: The weight of the score before reranking, from 0 to 1; above 0 both are mapped to 0..1 first.
        near_duplicate_threshold: Drops a candidate whose vector has a larger cosine than this with a better one.
        max_per_source: The most passages of one `source`. Passages without a source are not counted.
        expand: How many passages more to return, which the found ones name as related, see `related.with_related`.
        related_key: The key of the metadata that names them.
        mmr_lambda: The weight of relevance against variety, from 0 to 1, see `maximal_marginal_relevance`.
        group_by: A column or a key of the metadata, such as `"species"`: of the best `num_groups` groups of passages
            with one value, the best `k` passages are returned, those of the best group first; see `grouping`. `None`
            for passages by themselves.
        group_query: Which part of a query finds its group, `"image"`, `"text"` or `"both"`. A query without that
            part takes what it has.
        num_groups: How many groups the passages may come from.
    """

    k: int = 5
    channels: Sequence[str] = ("dense",)
    num_candidates: int = 50
    weights: Mapping[str, float] | None = None
    normalise: Normalisation = "zscore"
    where: Mapping[str, Any] | None = None
    reranker: Reranker | None = None
    rerank_mix: float = 0.0
    near_duplicate_threshold: float | None = None
    max_per_source: int | None = None
    mmr_lambda: float | None = None
    group_by: str | None = None
    group_query: QueryPart = "both"
    num_groups: int = 1
    expand: int = 0
    related_key: str = "related"

    def __post_init__(self) -> None:
        for name in ("k", "num_candidates", "max_per_source", "num_groups"):
            if name != "max_per_source" or self.max_per_source is not None:
                check_whole(name, getattr(self, name), lowest=1)
        check_whole("expand", self.expand, lowest=0, meaning=" related passages")
        for name, lowest in {"rerank_mix": 0, "near_duplicate_threshold": -1, "mmr_lambda": 0}.items():
            if getattr(self, name) is not None:
                check_between(name, getattr(self, name), lowest, 1)
        if isinstance(self.channels, str) or not self.channels or len(set(self.channels)) != len(self.channels):
            raise InvalidInputError(f'channels={self.channels!r}: expected different names, as in ("dense", "bm25").')
        if self.weights is not None and set(self.weights) != set(self.channels):
            raise InvalidInputError(
                f"weights are for {sorted(self.weights)}, channels are {sorted(self.channels)}. Give each channel one."
            )
        if self.weights is not None:
            check_weights(list(self.weights.values()))
        check_grouping(self.group_by, self.group_query)

    @property
    def ranks_by_cosine(self) -> bool:
        """Whether the scores of the ranking are cosines of queries with passages."""
        return tuple(self.channels) == ("dense",) and self.reranker is None

    @property
    def thins_out(self) -> bool:
        """Whether candidates are dropped after they were found."""
        return self.near_duplicate_threshold is not None or self.max_per_source is not None


def check_grouping(group_by: Any, group_query: Any) -> None:
    """Raises `InvalidInputError` unless passages can be grouped so."""
    if group_by is not None and (not isinstance(group_by, str) or not group_by):
        raise InvalidInputError(f"group_by={group_by!r}: expected the name of a column or of a key of the metadata.")
    if group_query not in ("both", "text", "image"):
        raise InvalidInputError(f'group_query={group_query!r} is not known. Choose "both", "text" or "image".')
