"""The evidence of training rows: retrieved, gold and distracting passages, in shares that change over the training.

A reader that always sees the gold passage first learns to copy from there and to trust everything; one that sees only
what the retriever finds often cannot know the answer.

References: Zhang et al. 2024 (RAFT, arXiv 2403.10131: gold among distractors, or left out); Yasunaga et al. 2023
(RA-CM3, arXiv 2211.12561: K drawn from 0 to 2); Yoran et al. 2024 (arXiv 2310.01558: robustness to irrelevant
passages).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from .passage_view import PassageView
from .rows import TrainingRow


Share = float | tuple[float, float]


@dataclass(frozen=True)
class EvidenceMix:
    """Which passages a reader learns from. Shares are in 0..1; a pair runs linearly from its first value at the start
    of the training to its second at the end.

    Attributes:
        num_passages: `K`, passages per question.
        gold: How often a gold passage is put in if the retriever has found none.
        distractors: Share of the other passages that give way to distractors: the row's `negative_ids`, or else random
            passages.
        noise: How often one passage is replaced by a random one.
        dropout: How often the number of passages is drawn from 0 to `K`.
        withheld: How often the gold passages are left out, also if the retriever found them: a reader that never
            meets wrong passages alone learns to believe them. Not for rows with `known` false, whose answers could
            only be guessed.
        shuffled: How often the passages stand in random order, and not best first: a good retriever puts the gold
            passage first on its training data, and a reader that relies on that looks no further.

    >>> EvidenceMix(num_passages=4, gold=(1.0, 0.2), noise=0.2).at(0.5)
    EvidenceMix(num_passages=4, gold=0.6, distractors=0.0, noise=0.2, dropout=0.0, withheld=0.0,
        shuffled=0.0)
    """

    num_passages: int = 4
    gold: Share = 0.0
    distractors: Share = 0.0
    noise: Share = 0.0
    dropout: Share = 0.0
    withheld: Share = 0.0
    shuffled: Share = 0.0

    def __post_init__(self) -> None:
        if self.num_passages < 0:
            raise InvalidInputError(f"num_passages={self.num_passages}: expected 0 or more.")
        for name, value in vars(self).items():
            if name != "num_passages":
                check_share(name, value)

    def at(self, progress: float) -> EvidenceMix:
        """The mix at a point of the training, from 0 for its start to 1 for its end."""
        pairs = {name: value for name, value in vars(self).items() if isinstance(value, (tuple, list))}
        return replace(self, **{name: share_at(pair, progress) for name, pair in pairs.items()})


def check_share(name: str, value: Any) -> None:
    """Refuses what is neither a share nor two.

    Raises:
        InvalidInputError: With the name.
    """
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(share, Real) and 0 <= share <= 1 for share in pair):
        raise InvalidInputError(f"{name}={value!r}: expected a share from 0 to 1, or two: (at start, at end).")


def share_at(share: Share, progress: float) -> float:
    """A share at a point of the training, from 0 for its start to 1 for its end.

    >>> share_at((1.0, 0.2), 0.5), share_at(0.3, 0.5)
    (0.6, 0.3)
    """
    if not isinstance(share, (tuple, list)):
        return share
    (first, last), progress = share, min(max(progress, 0.0), 1.0)
    return round(first + (last - first) * progress, 12)


def mix_evidence(
    mix: EvidenceMix, row: TrainingRow, retrieved: Sequence[int], view: PassageView, rng: np.random.Generator
) -> list[int]:
    """The passages that one training row is given, as rows of the knowledge base, in no order.

    Args:
        mix: All shares plain numbers, see `EvidenceMix.at`.
        row: With its gold, negative and excluded ids.
        retrieved: Best first; more than `num_passages`, as some are excluded.
        view: The knowledge base.
        rng: Source of all draws.
    """
    excluded = set(view.rows(row.exclude_ids))
    gold = view.rows(row.gold_ids)
    draws = rng.random(5 + mix.num_passages)  # a fixed number: no share changes the draws of another
    if draws[4] < mix.withheld and row.known:
        excluded, gold = excluded | set(gold), []
    wanted = int(draws[0] * (mix.num_passages + 1)) if draws[1] < mix.dropout else mix.num_passages
    found = [place for place in retrieved if place not in excluded]
    chosen = found[:wanted]
    if gold and wanted and not set(chosen) & set(gold) and draws[2] < mix.gold:
        chosen = [gold[int(rng.integers(len(gold)))], *chosen[: wanted - 1]]
    spare = [place for place in chosen if place not in gold]
    places = [place for place, draw in zip(range(len(spare)), draws[5:], strict=False) if draw < mix.distractors]
    new = _distractors(row, view, len(places), {*chosen, *gold, *excluded}, rng) if places else []
    for place, distractor in zip(places, new, strict=False):
        chosen[chosen.index(spare[place])] = distractor
    if draws[3] < mix.noise:
        others = [place for place in range(len(chosen)) if chosen[place] not in gold]
        noise = _random_rows(view, 1, {*chosen, *gold, *excluded}, rng)
        if others and noise:
            chosen[others[int(rng.integers(len(others)))]] = noise[0]
    return list(dict.fromkeys(chosen))


def _distractors(
    row: TrainingRow, view: PassageView, number: int, taken: set[int], rng: np.random.Generator
) -> list[int]:
    """Mined negatives of the row in random order; random passages where they do not suffice."""
    mined = [place for place in dict.fromkeys(view.rows(row.negative_ids)) if place not in taken]
    chosen = [mined[place] for place in rng.permutation(len(mined))[:number]]
    return chosen + _random_rows(view, number - len(chosen), {*taken, *chosen}, rng)


def _random_rows(view: PassageView, number: int, taken: set[int], rng: np.random.Generator) -> list[int]:
    """Rows of the knowledge base that are not taken; fewer if there are no more."""
    number = min(number, len(view) - len(taken))
    chosen: dict[int, None] = {}
    while len(chosen) < number:
        drawn = rng.integers(len(view), size=2 * number).tolist()
        chosen |= dict.fromkeys(place for place in drawn if place not in taken)
    return list(chosen)[: max(number, 0)]
