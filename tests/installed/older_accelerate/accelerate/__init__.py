"""As much of accelerate as a release has that is older than the names which PEFT imports."""

from accelerate.utils import extract_model_from_parallel

__version__ = "0.20.3"
__all__ = ["extract_model_from_parallel"]
