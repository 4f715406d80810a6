"""The recipe in a training script or notebook, with the place of each key, and edits of it."""
