"""The training contract: named checks of a short training run, and how they are measured."""
