"""What to write into an entry of a config that holds nothing: by the role that its name tells, by
the docstring of the config's class, or by the type that the class declares."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

from lora_doctor.tiny_model.config_roles import Node, flat_ints, role_of
from lora_doctor.tiny_model.shrink.config_gaps import Gap
from lora_doctor.tiny_model.shrink.empty_entries import (
    DEFAULT_ROPE,
    filling,
    has_attention,
    mrope_section,
)
from lora_doctor.tiny_model.shrink.timm_towers import tower_with

# Ids below those that shrinking moves, so that they are the same in the small config.
_FREE_IDS = range(40, 58)
_LENGTH = 16


def filled(root: Node, empty: list[Gap], message: str) -> dict[str, Any]:
    """Values for the entries that hold nothing, by their paths."""
    found: dict[str, Any] = {}
    for gap in empty:
        for node in root.walk():
            if gap.config_class not in ("", type(node.holder).__name__):
                continue
            if gap.key in node.values and node.values[gap.key] is None:
                tower = tower_with(node, gap.key, gap.looked_up)
                found |= {node.where(key): entry for key, entry in tower.items()}
                value = None if tower else _value_for(node, gap, message)
                if value is not None:
                    found[node.where(gap.key)] = value
    return found


def _value_for(node: Node, gap: Gap, message: str) -> Any:
    """What to write into an empty entry; None where no guess is sound."""
    values = node.values
    parts: Any = getattr(type(node.holder), "sub_configs", None)
    part: Any = (parts or {}).get(gap.key)
    if hasattr(part, "model_type") and part.model_type:  # `AutoConfig` could be anything
        return part()
    if has_attention(values):
        found = filling(gap.key, values, message)
        if found is not None:
            return found
    if "rope" in gap.key:
        return {**DEFAULT_ROPE, **mrope_section(values, message)}
    example, kind = _documented(node.holder, gap.key)
    if example is not None:
        return example
    if role_of(gap.key, 0) == "width" and isinstance(values.get("hidden_size"), int):
        return values["hidden_size"]
    if "dict" in kind:
        ids = [n for v in values.values() for n in flat_ints(v)]
        free = [number for number in _FREE_IDS if number not in ids]
        return dict(zip(gap.looked_up, free, strict=False)) or None
    if "list" in kind or "tuple" in kind:
        return _list_for(node, gap.key)
    if kind == "int" and gap.key.endswith("_length"):  # divides nothing, and must not be too short
        return _LENGTH
    # Equal numbers: whatever must divide another does.
    return 4 if kind == "int" else 1.0 if kind == "float" else None


def _list_for(node: Node, key: str) -> list[Any]:
    """A list as the docstring has it: one entry for each label (thresholds, an order), widths of
    layers that follow each other (two of them: some unpack a pair); else an empty one."""
    entry = _entry_text(node.holder, key)
    labels = getattr(node.holder, "num_labels", None)
    each = re.search(r"(for|of|per) (each |every |a )?(label|class)\b", entry)
    if each and isinstance(labels, int):
        return [0.5] * labels if "float" in entry.partition(")")[0] else list(range(labels))
    if role_of(key, 0) in ("channels", "width"):
        return [64, 64]
    return []


def _entry_text(holder: Any, key: str) -> str:
    """What the docstring of a config's class says about one entry; empty where nothing."""
    text = inspect.getdoc(type(holder)) or ""
    entry = re.search(rf"^\s*{re.escape(key)} \(`?.*?(?=^\s*\w+ \(`|\Z)", text, re.M | re.S)
    return entry[0] if entry else ""


def _documented(holder: Any, key: str) -> tuple[Any, str]:
    """An example of an entry's value from its class's docstring ("e.g. `"1/4"`"), and its type."""
    kind = ""
    for cls in type(holder).__mro__:
        declared = vars(cls).get("__annotations__", {}).get(key)
        if declared is not None:
            kind = getattr(declared, "__name__", None) or str(declared)
            kind = str(declared) if "|" in str(declared) or "[" in str(declared) else kind
            break
    entry = _entry_text(holder, key)
    named = re.match(r"\s*\w+ \(`?(\w+)", entry)
    if named is None:
        return None, _plain_kind(kind)
    kind = kind or named[1]
    for found in re.findall(r"(?:e\.g\.|such as|for example),?:? `([^`]+)`", entry, re.I):
        try:
            return ast.literal_eval(found), _plain_kind(kind)
        except (ValueError, SyntaxError):
            continue
    return None, _plain_kind(kind)


def _plain_kind(declared: str) -> str:
    """`int`, `float`, `dict`, `list` or what else a declared type like `int | None` begins with."""
    return re.split(r"[\[| ]", declared.lower().removeprefix("typing.").strip())[0]
