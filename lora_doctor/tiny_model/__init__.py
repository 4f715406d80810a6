"""A small model of the same classes, and a batch to run it with: ``shrink`` and ``batch``."""
