"""Named collections of knowledge, each read into a `KnowledgeBase`: WordNet, ConceptNet, Wikipedia."""

from __future__ import annotations

from .conceptnet import from_conceptnet
from .wikipedia import from_wikipedia
from .wordnet import from_wordnet


__all__ = ["from_conceptnet", "from_wikipedia", "from_wordnet"]
