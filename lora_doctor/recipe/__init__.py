"""The recipe: what the user is about to train, its keys, and edits of it."""
