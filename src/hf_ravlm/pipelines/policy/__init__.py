"""When to search, which passages to read, and when to say nothing."""
