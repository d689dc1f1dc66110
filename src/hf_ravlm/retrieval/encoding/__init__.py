"""Encoders of queries and passages, one by one or a corpus at a time."""
