"""Which adapter type a config class of the installed PEFT makes, from its source."""

from __future__ import annotations

import functools
import re

from lora_doctor.limits import INSTALLED_FILES
from lora_doctor.static.installed.environment import installed_text, package_folder

_CLASS = re.compile(r"^class (\w+Config)\b.*?(?=^class |\Z)", re.MULTILINE | re.DOTALL)
_TYPE = re.compile(r"self\.peft_type = PeftType\.(\w+)")


@functools.cache
def peft_type_of(config_class: str) -> str | None:
    """``LORA`` for ``LoraConfig``; ``None`` where PEFT is missing or has no such class."""
    return _types().get(config_class)


def config_class_of(kind: str) -> str | None:
    """``LoraConfig`` for ``LORA``; ``None`` where PEFT is missing or has no such adapters."""
    names = [name for name, made in _types().items() if made == kind]
    return min(names, key=len, default=None)


@functools.cache
def _types() -> dict[str, str]:
    peft = package_folder("peft")
    found: dict[str, str] = {}
    files = sorted(peft.glob("tuners/**/config.py"))[:INSTALLED_FILES] if peft is not None else []
    for file in files:
        for match in _CLASS.finditer(installed_text(file)):
            kind = _TYPE.search(match[0])
            if kind is not None:
                found[match[1]] = kind[1]
    return found
