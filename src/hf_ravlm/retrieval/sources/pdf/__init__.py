"""PDF files: their words with the place where they stand, their pages and figures as images."""
