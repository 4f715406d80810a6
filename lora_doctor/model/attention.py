"""The attention of the recipe on this machine: flash attention needs a package and a GPU."""

from __future__ import annotations

from typing import Any

from lora_doctor.recipe.recipe import Recipe

_FLASH = "flash_attention"


def attention_here(recipe: Recipe, model_class: Any = None) -> str | None:
    """The ``attn_implementation`` to build and load with: that of the recipe, or ``None`` for the
    class's own choice where it is flash attention that cannot run here. A class that does not
    support it at all is asked for it and says so."""
    asked = recipe.get("attn_implementation")
    return None if missing_attention(recipe, model_class) else asked


def missing_attention(recipe: Recipe, model_class: Any = None) -> str:
    """The attention of the recipe where this machine lacks it; else empty."""
    asked = recipe.get("attn_implementation")
    if not isinstance(asked, str) or not asked.startswith(_FLASH) or not _supports(model_class):
        return ""
    from transformers import utils

    name = f"is_{asked.replace(_FLASH, 'flash_attn')}_available"
    available = getattr(utils, name, None)
    return asked if available is not None and not available() else ""


def _supports(model_class: Any) -> bool:
    """Whether the class has flash attention, by its own word; true where it says nothing."""
    flags = [getattr(model_class, name, None)
             for name in ("_supports_flash_attn", "_supports_flash_attn_2")]  # fmt: skip
    said = [flag for flag in flags if flag is not None]
    return not said or any(said)
