"""A small config from any config, and the model built from it."""
