"""What the tokenizer of a model's folder does not have: a token for masked words, a template."""

from __future__ import annotations

import functools
import re

from lora_doctor.static.folder.chat_template import FILE
from lora_doctor.static.installed.environment import installed_text, package_folder
from lora_doctor.static.model_files import StaticEvidence

_MAP = "special_tokens_map.json"
#: Other files in which releases of transformers look for templates.
_TEMPLATES = re.compile(r"chat_template|additional_chat_templates/")


def lacks_mask_token(static: StaticEvidence) -> bool:
    """Whether the folder surely gives its tokenizer no mask token, and no class of transformers
    for that tokenizer, or for models of this type, has one by default."""
    settings = static.tokenizer_config.value
    name = (settings or {}).get("tokenizer_class")
    if not settings or not isinstance(name, str) or "auto_map" in settings:
        return False
    if settings.get("mask_token") is not None or (
        _MAP in static.listing and "mask_token" in installed_text(static.fetched(_MAP))
    ):
        return False
    return not _has_default(name, static.model_type or "", "mask_token")


def lacks_chat_template(static: StaticEvidence) -> bool:
    """Whether the folder has no chat template, and the installed release none by default."""
    settings = static.tokenizer_config.value
    if not settings or "auto_map" in settings or settings.get("chat_template") is not None:
        return False
    if FILE in static.listing or any(_TEMPLATES.search(one) for one in static.listing):
        return False
    name = str(settings.get("tokenizer_class"))
    return not _has_default(name, static.model_type or "", "chat_template")


@functools.cache
def _has_default(tokenizer: str, model_type: str, word: str) -> bool:
    """Whether an installed class may have it by itself; also where that is not known."""
    folder = package_folder("transformers")
    if folder is None:
        return True
    base = installed_text(folder / "tokenization_utils_base.py")
    if not base or (word == "chat_template" and "default_chat_template" in base):
        return True
    opening = re.compile(rf"^class {re.escape(tokenizer.removesuffix('Fast'))}(?:Fast)?\b", re.M)
    beside = model_type.replace("-", "_")
    for file in folder.glob("models/*/tokenization_*.py"):
        text = installed_text(file)
        own = file.parent.name == beside or opening.search(text) is not None
        if own and re.search(rf"(?<!apply_)\b{word}\b", text):
            return True
    return False
