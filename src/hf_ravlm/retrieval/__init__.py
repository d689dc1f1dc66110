"""What is known and how it is found: knowledge bases, encoders, exact search, and the retriever that joins them."""

from __future__ import annotations

from .encoders import Encoder, RavlmEncoder
from .evidence import Evidence
from .knowledge_base import KnowledgeBase, Passage
from .retriever import RavlmRetriever
from .store_care import repair_store, store_info, verify_store
from .vector_index import FlatIndex


__all__ = [
    "Encoder",
    "Evidence",
    "FlatIndex",
    "KnowledgeBase",
    "Passage",
    "RavlmEncoder",
    "RavlmRetriever",
    "repair_store",
    "store_info",
    "verify_store",
]
