"""Child processes that run model code, under a time and a memory limit."""
