"""Knows how other libraries use what we have: one file for each, which alone imports it."""
