"""Pretrained parts of a reader: the repository that each came from, and how a saved reader refers to it."""
