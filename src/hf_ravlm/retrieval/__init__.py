"""What is known and how it is found: knowledge bases, encoders, exact search, and the retriever that joins them."""

from __future__ import annotations

from .encoders import Encoder, RavlmEncoder
from .knowledge_base import KnowledgeBase, Passage
from .retriever import Evidence, RavlmRetriever
from .vector_index import FlatIndex


__all__ = ["Encoder", "Evidence", "FlatIndex", "KnowledgeBase", "Passage", "RavlmEncoder", "RavlmRetriever"]
