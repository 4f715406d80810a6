"""The installed packages: versions, classes and names, from metadata and sources alone."""
