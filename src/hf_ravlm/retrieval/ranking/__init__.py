"""Filters, channels, fusion and reranking: several ways of finding become one ranking."""
