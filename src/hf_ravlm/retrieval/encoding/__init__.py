"""How queries and passages become vectors, one by one or a corpus at a time."""
