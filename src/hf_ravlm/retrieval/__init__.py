"""What is known and how it is found: knowledge bases, encoders, exact search, and the retriever that joins them."""

from __future__ import annotations

from .encoding.encoders import Encoder, RavlmEncoder
from .evidence import Evidence
from .indexes.vector_index import FlatIndex
from .knowledge_base import KnowledgeBase, Passage
from .retriever import RavlmRetriever
from .store.store_care import repair_store, store_info, verify_store


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
