"""The reader: a language model that answers from an image, a question and passages."""
