"""A knowledge base on a Milvus server, asked and changed like a local one: pip install "hf_ravlm[milvus]"."""

from __future__ import annotations

from .retriever import MilvusRetriever


__all__ = ["MilvusRetriever"]
