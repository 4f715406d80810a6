"""The small files of a hub model, within limits, and never its weights."""
