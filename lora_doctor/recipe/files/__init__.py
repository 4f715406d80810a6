"""Recipes in files: read, and edited so that every byte that is not meant stays."""
