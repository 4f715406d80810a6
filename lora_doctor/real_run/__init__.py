"""The real run: the user's own command with the patches of a prescription, and nothing else."""
