"""Applied fixes as files, and as patches of the process that trains."""
