"""The version of lora-doctor, for everything that writes it into a file or a request."""

__version__ = "0.1.0"
