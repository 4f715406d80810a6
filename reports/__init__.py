"""One file per output format, each with ``render(diagnosis, ...)``."""
