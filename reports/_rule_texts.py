"""What a rule's own file says of it, for formats that carry documentation with their results."""

from __future__ import annotations

import importlib
import inspect

from lora_doctor.discovery import module_names

#: By its place, as the engine finds rules: no format knows one.
_RULES = "lora_doctor.rules"


def rule_texts(code: str, name: str) -> tuple[str, str]:
    """The summary of a rule in a sentence, and its documentation as Markdown.

    Only the file of that rule is imported. For a rule of somebody else, or one that is gone since a
    result was stored: its name in words, and no documentation.
    """
    for module_name in module_names(_RULES):
        if not module_name.startswith(f"{code.lower()}_"):
            continue
        for rule in vars(importlib.import_module(f"{_RULES}.{module_name}")).values():
            if isinstance(rule, type) and vars(rule).get("code") == code:
                return str(vars(rule)["summary"]), inspect.getdoc(rule) or ""
    return f"{name.replace('-', ' ').capitalize()}.", ""
