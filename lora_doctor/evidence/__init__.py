"""What is known about a case: one file per kind of evidence, cheapest first."""
