"""Indexes of vectors and of words."""
