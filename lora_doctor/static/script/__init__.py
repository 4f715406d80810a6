"""A training script, read with ``ast`` and never run."""
