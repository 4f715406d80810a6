"""Model code that needs a package which is not installed here, in one plain sentence."""

from __future__ import annotations

import re


def missing_package(error: BaseException) -> str:
    """`needs timm, which is not installed here: pip install timm`; empty for anything else.

    The name is what the message says to install, else the module that could not be imported.
    """
    if not isinstance(error, ImportError):
        return ""
    said = " ".join(str(error).split())
    asked = re.search(r"pip install ([\w.\-\[\]]+)", said) or re.search(
        r"requires? the (\w+) library", said
    )
    module = re.search(r"No module named '(\w+)", said)
    name = asked[1].rstrip(".") if asked else module[1] if module else ""
    return f"needs {name}, which is not installed here: pip install {name}" if name else ""
