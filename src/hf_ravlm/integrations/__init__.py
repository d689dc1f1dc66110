"""Adapters for other libraries: one file for each, which alone imports it."""
