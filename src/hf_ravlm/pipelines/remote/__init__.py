"""A reader behind a server of OpenAI's kind: what is asked, how, and what becomes of its reply."""
