"""Heads over the dual encoder: image-text matching and masked words."""
