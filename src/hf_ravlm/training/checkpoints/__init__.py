"""Checkpoints that are whole or not used."""
