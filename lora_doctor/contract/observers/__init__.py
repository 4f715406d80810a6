"""Observers of the training contract, one kind of reading each; found by their place."""
