"""Features of passages and answers: the numbers that gate, critic and confidence judge by.

Plain functions of texts and scores. What each feature means stands in `decision_heads.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ...errors import InvalidInputError
from .decision_heads import EVIDENCE_FEATURES, rival_features


RARE = 0.01  # words in no more than this share of all passages count in full, those in all passages not at all
CLOSE = 0.1  # of cosine; a passage so far below the best one has 1/e of its say in what is agreed on


def word_shares(texts: Iterable[str], least_share: float = RARE) -> dict[str, float]:
    """The words that are in more than `least_share` of the texts, with that share: what says little of a passage.

    Example:

    ```python
    >>> word_shares(["the capital of Chad", "the capital of Mali"], least_share=0.5)
    {'capital': 1.0, 'of': 1.0, 'the': 1.0}

    ```
    """
    from ...retrieval.indexes.lexical_tokens import lexical_tokens

    held = [set(lexical_tokens(text)) for text in texts]
    counts = Counter(word for words in held for word in words)
    return {word: count / len(held) for word, count in sorted(counts.items()) if count / len(held) > least_share}


def passage_agreement(texts: Sequence[str], scores: Sequence[float], shares: Mapping[str, float]) -> list[float]:
    """How far the others speak of what each passage speaks of: 0 (nobody) to 1 (all, with a rare word).

    Over the words of a passage, the highest product of the word's rarity and the share of the other passages that
    have it; passages far below the best have little say. Passages found for one question mostly are about one thing,
    and name it; the stranger among them names something else.

    Args:
        texts (`list[str]`), scores (`list[float]`): Of the passages that were found for one question.
        shares (`dict[str, float]`): Of `word_shares`, over many passages; a word that it lacks is rare.

    Example:

    ```python
    >>> found = ["Capital of Chad: N'Djamena.", "Language of Chad: Arabic.", "Capital of Mali: Bamako."]
    >>> passage_agreement(found, [0.9, 0.9, 0.9], {"of": 1.0, "capital": 0.1, "language": 0.1})
    [0.5, 0.5, 0.25]

    ```
    """
    from ...retrieval.indexes.lexical_tokens import lexical_tokens

    held = [set(lexical_tokens(text)) for text in texts]
    says = [math.exp((score - max(scores)) / CLOSE) for score in scores]
    having: dict[str, float] = {}
    for words, say in zip(held, says, strict=True):
        for word in words:
            having[word] = having.get(word, 0.0) + say
    agreed = []
    for words, say in zip(held, says, strict=True):
        others = sum(says) - say
        most = max((_rarity(word, shares) * (having[word] - say) for word in words), default=0.0)
        agreed.append(most / others if others > 0 else 0.0)
    return agreed


def passage_features(passages: Sequence[Any], shares: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """`PASSAGE_FEATURES` of the passages found for one question, each `(K,)`.

    Raises:
        InvalidInputError: A passage has no score, so that nobody retrieved it.
    """
    if unscored := [passage for passage in passages if not hasattr(passage, "score")]:
        raise InvalidInputError(
            f"A policy judges passages by their scores, and {unscored[0]!r:.80} has none. Pass pieces of `Evidence`, "
            "as `retriever.retrieve` returns them."
        )
    cosines = [float(passage.score) for passage in passages]
    scores = torch.tensor([cosines])  # (1, K)
    agreement = torch.tensor([passage_agreement([passage.text or "" for passage in passages], cosines, shares)])
    features = rival_features(scores, agreement, torch.ones_like(scores, dtype=torch.bool))
    return {name: values[0] for name, values in features.items()}


def evidence_features(
    features: Mapping[str, torch.Tensor], beliefs: Sequence[float], kept: Sequence[int]
) -> dict[str, float]:
    """`EVIDENCE_FEATURES` of one question.

    Args:
        features (`dict[str, torch.Tensor]`): Of `passage_features`.
        beliefs (`list[float]`): What the critic said of each passage, in 0..1.
        kept (`list[int]`): The places of those that are kept, the one to be read first at the head.
    """
    if not beliefs:
        return dict.fromkeys(EVIDENCE_FEATURES, 0.0)
    scores = features["score"]
    return {
        "best_score": float(scores.max()),
        "first_critic": beliefs[kept[0]] if kept else 0.0,
        "best_critic": max(beliefs),
        "first_agreement": float(features["agreement"][kept[0]]) if kept else 0.0,
        "score_drop": float(scores.max() - scores[-1]),
        "share_kept": len(kept) / len(beliefs),
    }


def quoting_features(answer: str, read: Sequence[Any], kept: Sequence[Any]) -> dict[str, float]:
    """Whether the answer stands in a passage that was read, and in how many of those that were kept.

    Example:

    ```python
    >>> from types import SimpleNamespace
    >>> chad, mali = SimpleNamespace(text="The capital of Chad: N'Djamena."), SimpleNamespace(text="Bamako")
    >>> quoting_features("n'djamena", [chad], [chad, mali])
    {'is_quoted': 1.0, 'share_quoting': 0.5}

    ```
    """
    said = answer.strip().casefold()

    def quotes(passage: Any) -> bool:
        return bool(said) and said in (passage.text or "").casefold()

    return {
        "is_quoted": float(any(map(quotes, read))),
        "share_quoting": sum(map(quotes, kept)) / len(kept) if kept else 0.0,
    }


def _rarity(word: str, shares: Mapping[str, float]) -> float:
    """1 up to a share of `RARE`, falling with the logarithm of the share to 0 for a word that all passages have."""
    return min(1.0, math.log(shares.get(word, RARE)) / math.log(RARE))
