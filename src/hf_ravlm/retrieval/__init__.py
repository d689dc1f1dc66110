"""What is known and how it is found: knowledge bases, encoders, indexes, rankings, and the retriever that joins them.

The rooms: `sources` (files, tables and data sets become passages), `encoding` (passages become vectors), `indexes`
(vectors and words are searched), `ranking` (candidates are filtered, joined and ordered), `store` (the folder that
survives interruptions), `hub` (publishing and downloading).
"""

from __future__ import annotations

from .encoding.corpus import embed_corpus
from .encoding.cost import EmbeddingCost, estimate_embedding
from .encoding.dual_encoder import DualEncoder, ImageEncoder
from .encoding.encoders import Encoder, MultiVectorEncoder, RavlmEncoder
from .encoding.late_interaction_encoder import LateInteractionEncoder
from .encoding.load_encoder import load_encoder
from .encoding.remote_encoder import RemoteEncoder
from .encoding.sentence_transformer_encoder import SentenceTransformerEncoder
from .encoding.text_model_encoder import TextModelEncoder
from .evidence import Evidence
from .indexes.index_choice import IndexEstimate, estimate_index, suitable_kinds
from .indexes.index_types import INDEX_KINDS
from .indexes.vector_index import FlatIndex, VectorIndex, build_index
from .knowledge_base import KnowledgeBase
from .passage import Passage
from .ranking.late_interaction import LateInteractionReranker
from .ranking.rerank import CrossEncoderReranker, ItmReranker, Reranker, YesNoReranker
from .ranking.search_options import SearchOptions
from .retriever import RavlmRetriever
from .sources.chunking import Chunking
from .store.repair import repair_store, store_info, verify_store
from .store.state import IndexOptions


__all__ = [
    "INDEX_KINDS",
    "Chunking",
    "CrossEncoderReranker",
    "DualEncoder",
    "EmbeddingCost",
    "Encoder",
    "Evidence",
    "FlatIndex",
    "ImageEncoder",
    "IndexEstimate",
    "IndexOptions",
    "ItmReranker",
    "KnowledgeBase",
    "LateInteractionEncoder",
    "LateInteractionReranker",
    "MultiVectorEncoder",
    "Passage",
    "RavlmEncoder",
    "RavlmRetriever",
    "RemoteEncoder",
    "Reranker",
    "SearchOptions",
    "SentenceTransformerEncoder",
    "TextModelEncoder",
    "VectorIndex",
    "YesNoReranker",
    "build_index",
    "embed_corpus",
    "estimate_embedding",
    "estimate_index",
    "load_encoder",
    "repair_store",
    "store_info",
    "suitable_kinds",
    "verify_store",
]
