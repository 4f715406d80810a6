"""Default configs of transformers that contradict themselves, set right as a user would.

Runs where transformers is imported.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any


def with_room_for_tokens(config: Any) -> Any:
    """A default config whose special tokens lie outside its own vocabulary cannot be built
    (SmolVLM's padding token): the vocabulary is made large enough, as a user would."""
    parts = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    for part in (config, *parts):
        size = vars(part).get("vocab_size")
        pad = vars(part).get("pad_token_id")
        if isinstance(size, int) and isinstance(pad, int) and pad >= size:
            part.vocab_size = pad + 1
    return config


@dataclass(frozen=True)
class Repaired:
    """A config, and what was set in it, as ``entry = value``."""

    config: Any
    changes: tuple[str, ...]


def repaired_default(config: Any, error: Exception) -> Repaired | None:
    """The config with the entries set that this objection of its own class names (Mllama's rotary
    settings in transformers 4); ``None`` when it names none that can be filled, or is set already.
    """
    from lora_doctor.tiny_model.batch_objections import one_line
    from lora_doctor.tiny_model.shrink_apply import Sizes, find_entry
    from lora_doctor.tiny_model.shrink_repair import repair
    from lora_doctor.tiny_model.shrink_rules import tree

    better = copy.deepcopy(config)
    root = tree(better)
    changes = []
    said = one_line(error)
    for option in repair(Sizes(), None, better, [said])[:1]:
        for where, value in option.overrides:
            node, key = find_entry(root, where)
            if key in said and node.values.get(key) != value:
                node.set(key, value)
                changes.append(f"{where} = {value}")
    return Repaired(better, tuple(changes)) if changes else None
