"""The chat template in a model's folder, as the installed transformers finds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import MIB, check_bytes
from lora_doctor.static.folder.tokenizer_settings import chat_template_not_read
from lora_doctor.static.model_files import StaticEvidence

FILE = "chat_template.jinja"
_SETTINGS = "tokenizer_config.json"
_DEFAULT = "default"


@dataclass(frozen=True)
class TemplateText:
    """A template, and the file that it is in."""

    file: str
    text: str


def template_of(static: StaticEvidence) -> TemplateText:
    """The template that a tokenizer of this folder formats conversations with.

    Raises:
        EvidenceError: there is none, or it cannot be read.
    """
    if FILE in static.listing and not chat_template_not_read(static):
        path = static.fetched(FILE)
        try:
            check_bytes(path.stat().st_size, MIB, FILE)
            return TemplateText(FILE, path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise EvidenceError(f"{FILE} cannot be read: {error}", remedy="file") from None
    text = _default((static.tokenizer_config.value or {}).get("chat_template"))
    if text is None:
        raise EvidenceError("the folder has no chat template")
    return TemplateText(_SETTINGS, text)


def _default(value: Any) -> str | None:
    """The template of this setting: a text, or a list of templates with names."""
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, dict)]
        value = next((item.get("template") for item in named if item.get("name") == _DEFAULT), None)
    return value if isinstance(value, str) else None
