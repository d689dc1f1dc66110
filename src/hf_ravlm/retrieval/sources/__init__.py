"""Sources of passages: dictionaries, data sets, tables, folders, texts in chunks."""
