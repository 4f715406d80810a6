"""Imports of what is not there, each of which is provided for.

from transformers import in_a_text
"""

from typing import TYPE_CHECKING

import transformers

if TYPE_CHECKING:
    from transformers import for_type_checkers  # noqa: F401
try:
    from transformers import under_try
except ImportError:
    under_try = None
if transformers.__version__ < "4.0":
    from transformers import behind_a_version_test  # noqa: F401
if hasattr(transformers, "PreTrainedModel"):
    from transformers import PreTrainedModel  # noqa: F401


def later():
    """Nobody calls it."""
    from transformers import in_a_function

    return in_a_function


__version__ = "0.50.2"
