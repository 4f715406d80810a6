"""Readers and writers, one per file format in which people keep their recipe."""
