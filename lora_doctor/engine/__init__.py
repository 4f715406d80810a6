"""Rules found and run on a case, fixes applied, and the proof: see ``diagnose``."""
