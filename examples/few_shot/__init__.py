"""Classifiers with few labelled images: two sets that packages ship, and curves over the number of images."""
