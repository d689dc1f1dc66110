"""The command line ``hf-ravlm`` (being written)."""
