"""What a run found: data only, no torch; every report is rendered from it."""
