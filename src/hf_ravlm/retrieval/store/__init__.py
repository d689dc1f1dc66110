"""Knowledge bases on disk: stored whole or not at all, and checked when they are opened."""
