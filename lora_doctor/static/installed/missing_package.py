"""Model code that needs a package which is not installed here, in one plain sentence."""

from __future__ import annotations

import re

from lora_doctor.errors import Remedy
from lora_doctor.text import single_line


def missing_package(error: BaseException) -> str:
    """`needs timm, which is not installed here: pip install timm`; empty for anything else."""
    name = missing_name(str(error)) if isinstance(error, ImportError) else ""
    return f"needs {name}, which is not installed here: pip install {name}" if name else ""


def missing_remedy(error: BaseException) -> Remedy | None:
    """What the user can change about an exception of a library: install a package, or nothing."""
    return "package" if isinstance(error, ImportError) else None


def missing_name(message: str) -> str:
    """What the message of an ImportError says to install, else the module that could not be
    imported; empty where it names neither."""
    message = single_line(message)
    named = (
        re.search(r"pip install ([\w.\-\[\]]+)", message)
        or re.search(r"requires? the (\w+) library", message)
        or re.search(r"required package '([\w.\-]+)' is not installed", message)
    )
    module = re.search(r"No module named '(\w+)", message)
    return named[1].rstrip(".") if named else module[1] if module else ""
