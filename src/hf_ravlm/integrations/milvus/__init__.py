"""Knowledge bases on a Milvus server, searched like local ones."""
