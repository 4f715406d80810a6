"""What of a `tokenizer_config.json` the installed transformers does not take, by its own source."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from lora_doctor.static.installed.environment import package_folder
from lora_doctor.static.model_files import StaticEvidence

_AUTO = "models/auto/tokenization_auto.py"
_BASE = "tokenization_utils_base.py"
#: The class of transformers 5 that opens any tokenizer.json, also one of an unknown class.
_ANY = "TokenizersBackend"


def unknown_tokenizer_class(static: StaticEvidence) -> str | None:
    """`tokenizer_class`, where the installed transformers has no such class and no other way.

    None where the repository brings the class, where transformers is missing, or where it opens
    unknown classes by their tokenizer.json.
    """
    settings = static.tokenizer_config.value or {}
    name = settings.get("tokenizer_class")
    brought = settings.get("auto_map") or static.config.get("auto_map") or {}
    auto = _source(_AUTO)
    if not isinstance(name, str) or "AutoTokenizer" in brought or not auto or _ANY in auto:
        return None
    return None if any(_is_known(each) for each in (name, f"{name}Fast")) else name


def special_tokens_in_a_list(static: StaticEvidence) -> list[Any] | None:
    """`extra_special_tokens` that is a list, where the installed transformers takes its keys."""
    given = (static.tokenizer_config.value or {}).get("extra_special_tokens")
    # Its constructor names a dictionary as the default, and hands what it got on as one.
    takes_keys = re.search(r"\.pop\(\s*\"extra_special_tokens\", \{\}\)", _source(_BASE))
    return given if isinstance(given, list) and takes_keys else None


def chat_template_not_read(static: StaticEvidence) -> bool:
    """Whether the folder's one chat template is a file that the installed transformers ignores."""
    if "chat_template.jinja" not in static.listing:
        return False
    if (static.tokenizer_config.value or {}).get("chat_template"):
        return False
    base = _source(_BASE)
    return bool(base) and "chat_template.jinja" not in base and "CHAT_TEMPLATE_FILE" not in base


def adds_prefix_space(static: StaticEvidence) -> bool:
    """Whether tokenizer.json puts a space before a text and tokenizer_config.json does not say so.

    transformers 4 then takes it away: its fast tokenizers follow the setting, not the file.
    """
    if (static.tokenizer_config.value or {}).get("add_prefix_space") is not None:
        return False
    file = static.tokenizer.value
    section = file.sections.get("pre_tokenizer") if file is not None else None
    return any(part.get("add_prefix_space") is True for part in _parts(section))


def _parts(section: Any) -> Iterator[dict[str, Any]]:
    if isinstance(section, dict):
        yield section
        for part in section.get("pretokenizers") or ():
            yield from _parts(part)


def _is_known(name: str) -> bool:
    if not name.isidentifier():
        return False
    if name == "PreTrainedTokenizerFast" or f'"{name}"' in _source(_AUTO):
        return True
    if f'"{name}"' in _source("__init__.py"):
        return True
    folder = package_folder("transformers")
    opened = re.compile(rf"^class {name}\b".encode(), re.MULTILINE)
    files = folder.glob("models/*/tokenization_*.py") if folder is not None else ()
    return any(opened.search(file.read_bytes()) for file in files)


@functools.cache
def _source(name: str) -> str:
    folder = package_folder("transformers")
    path = folder / name if folder is not None else None
    return path.read_text("utf-8", errors="replace") if path is not None and path.is_file() else ""
