"""Python code of a model's repository, read with ``ast`` and never imported."""
