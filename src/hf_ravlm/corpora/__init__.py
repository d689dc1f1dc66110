"""Named collections of knowledge (WordNet, ConceptNet, Wikipedia), read into a `KnowledgeBase`."""
