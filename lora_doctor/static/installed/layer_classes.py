"""Which classes the installed transformers has for a model, read from its source."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lora_doctor.static.installed.environment import installed_text, package_folder

_NO_SPLIT = re.compile(r"_no_split_modules\s*=\s*\[([^\]]*)\]")


def sources_of(model_types: Iterable[str]) -> str | None:
    """The model code of these architectures; ``None`` where one of them is not found."""
    folder = package_folder("transformers")
    found = []
    for name in model_types:
        files = (
            sorted((folder / "models" / name.replace("-", "_")).glob("modeling_*.py"))
            if folder is not None and name.replace("-", "_").isidentifier()
            else []
        )
        text = "".join(
            installed_text(path) for path in files if not re.search(r"_(tf|flax)_", path.name)
        )
        if not text:
            return None
        found.append(text)
    return "\n".join(found)


def has_class(sources: str, name: str) -> bool:
    """Whether the code has, or imports, a class of this name."""
    return bool(re.search(rf"\b{re.escape(name)}\b", sources))


def layers_of(sources: str) -> tuple[str, ...]:
    """The classes that the code itself wants to be kept whole: its layers."""
    named = [name for listed in _NO_SPLIT.findall(sources) for name in re.findall(r"\w+", listed)]
    return tuple(dict.fromkeys(named))
