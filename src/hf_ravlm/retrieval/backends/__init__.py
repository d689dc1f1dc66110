"""Engines that keep a knowledge base on other machines. Each is imported by those who ask for it, with its client."""
