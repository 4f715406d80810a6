"""Modules in memory: copied without touching the original, seeded, their embeddings and memory."""
