"""A training script or notebook, read with ``libcst`` and never run: its calls, in their order."""
