"""Fusions: what the language model sees of an image, a question and its passages."""
