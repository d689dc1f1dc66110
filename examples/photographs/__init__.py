"""The photographs world: pictures of things with a caption each, and what WordNet says about these things."""
