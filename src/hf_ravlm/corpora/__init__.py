"""Named collections of knowledge, each read into a `KnowledgeBase`: WordNet, ConceptNet, Wikipedia, benchmarks."""

from __future__ import annotations

from .benchmarks import (
    BENCHMARKS,
    benchmark_questions,
    from_encyclopedic_vqa,
    from_infoseek,
    from_m2kr,
    from_viquae,
)
from .conceptnet import from_conceptnet
from .wikipedia import from_wikipedia
from .wordnet import from_wordnet


__all__ = [
    "BENCHMARKS",
    "benchmark_questions",
    "from_conceptnet",
    "from_encyclopedic_vqa",
    "from_infoseek",
    "from_m2kr",
    "from_viquae",
    "from_wikipedia",
    "from_wordnet",
]
