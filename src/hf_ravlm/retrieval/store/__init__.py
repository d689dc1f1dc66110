"""How knowledge is kept on disk: whole or not at all, checked when it is opened."""
