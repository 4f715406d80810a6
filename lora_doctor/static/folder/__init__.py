"""Whether the files of a model's folder agree with each other: read from headers."""
