"""Training rows and the batches made of them."""
