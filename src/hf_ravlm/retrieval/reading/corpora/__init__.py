"""Readers of public bodies of knowledge: WordNet, ConceptNet and Wikipedia, each as a stream of rows."""
