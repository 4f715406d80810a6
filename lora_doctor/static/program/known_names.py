"""Names of the standard library and of installed packages whose value is known without the program:
the words of its command line, the platform, the installed releases."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from lora_doctor.static.installed.environment import package_folder
from lora_doctor.static.installed.installed_names import importable
from lora_doctor.static.installed.signatures import installed_version
from lora_doctor.static.program.started import value_of
from lora_doctor.static.program.values import Call, Items, Known, Reference, Unknown, Value

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context

#: Functions that make a release of a text, to compare it by its numbers.
_VERSIONS = frozenset(
    ["packaging.version.parse", "packaging.version.Version", "pkg_resources.parse_version",
     "distutils.version.LooseVersion", "distutils.version.StrictVersion",
     "looseversion.LooseVersion"]
)  # fmt: skip
_RELEASES = ("importlib.metadata.version", "importlib_metadata.version")
_INSTALLED = ("importlib.util.find_spec", "importlib.find_loader", "pkgutil.find_loader")


def known_name(follower: Context, name: str) -> Value | None:
    """The value of a dotted name; ``None`` for all whose value is not known here."""
    if name == "sys.argv":
        words = [value_of(word, word) for word in follower.script_arguments]
        return Items([Known(follower.unit.file), *words])
    if name == "typing.TYPE_CHECKING":
        return Known(False)
    if name == "sys.platform":
        return Known(sys.platform)
    if name == "os.name":
        return Known(os.name)
    if name == "sys.version_info":
        return Items([Known(part) for part in sys.version_info], "tuple")
    package, _, last = name.partition(".")
    if last == "__version__":
        found = installed_version(package.replace("_", "-"))
        return Known(found) if found is not None else None
    return None


def of_installed(follower: Context, call: Call) -> Value | None:
    """What a call says of the installed packages; ``None`` for all others."""
    if call.method == "is_flash_attn_2_available" and call.name.startswith("transformers."):
        return Known(package_folder("flash_attn") is not None)
    first = call.value("", 0)
    if call.name == "hasattr" and isinstance(first, Reference):
        return _has(first, call)
    text = first.value if isinstance(first, Known) else None
    if not isinstance(text, str):
        return None
    if call.name in _VERSIONS:
        from packaging.version import InvalidVersion, Version

        try:
            return Known(Version(text))
        except InvalidVersion:
            return None
    if call.name in _RELEASES:
        found = installed_version(text)
        return Known(found) if found is not None else None
    if call.name in _INSTALLED:
        return Reference(text) if package_folder(text.partition(".")[0]) else Known(None)
    return None


def _has(owner: Reference, call: Call) -> Value:
    """``hasattr(transformers, "AdamW")``, by the sources of the installed release."""
    name = call.value("", 1)
    known = isinstance(name, Known) and isinstance(name.value, str)
    there = importable(owner.name, name.value) if known and isinstance(name, Known) else "unknown"
    if there == "unknown" or package_folder(owner.name.partition(".")[0]) is None:
        return Unknown(" ".join(call.span.text.split()), call.place, "", call.span)
    return Known(there == "there")
