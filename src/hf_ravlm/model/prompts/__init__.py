"""Prompts: how images, questions and passages become tokens."""
