"""What `hf-ravlm` can do: a command takes parsed arguments and returns an `Outcome`."""
