"""As much of a torch for CPUs as is read: its libraries by name."""
