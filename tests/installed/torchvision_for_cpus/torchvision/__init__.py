"""As much of torchvision as is read: a compiled file, and what pip knows."""
