"""What `hf-ravlm` can do: a command gets parsed arguments and returns what it found, for people and for programs."""
