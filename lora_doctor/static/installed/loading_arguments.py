"""Which arguments ``from_pretrained`` of a model takes beside its own: what the config has, and
what the class is made with. Read, never imported."""

from __future__ import annotations

import functools
import re

from lora_doctor.static.installed.environment import installed_text, package_folder

#: Where ``from_pretrained`` of a model, of an auto class and of a config take arguments out.
_TAKEN_OUT = (
    "modeling_utils.py", "models/auto/auto_factory.py", "models/auto/configuration_auto.py",
    "configuration_utils.py", "utils/hub.py", "generation/configuration_utils.py",
    "utils/generic.py",
)  # fmt: skip
#: What any model's config or constructor may have a name for.
_OF_MODELS = ("models/*/configuration_*.py", "models/*/modeling_*.py")


@functools.cache
def is_taken_by_loading(name: str) -> bool | None:
    """Whether ``from_pretrained`` of some model of the installed transformers takes an argument;
    ``None`` where transformers is missing. Thousands of files are read for one that none takes."""
    folder = package_folder("transformers")
    if folder is None:
        return None
    out = re.compile(rf"""["']{re.escape(name)}["']|^\s+{re.escape(name)}\s*[:=]""", re.MULTILINE)
    if any(out.search(installed_text(folder / file)) for file in _TAKEN_OUT):
        return True
    own = re.compile(rf"(?<![\w.]){re.escape(name)}\b|self\.{re.escape(name)}\s*=[^=]")
    return any(own.search(installed_text(file)) for one in _OF_MODELS for file in folder.glob(one))
