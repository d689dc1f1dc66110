"""Heads: image-text matching, masked words and image classification over the dual encoder, answers over the reader."""
