"""Losses of the trainers, with the gathers and caches that large batches need."""
