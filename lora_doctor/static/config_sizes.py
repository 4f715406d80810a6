"""Is a model config one that can be meant? Sizes that cannot be are refused before they cost.

A config is read from a repository, and building a model from it allocates what it says: a negative
width ends in a traceback deep inside torch, a million layers in minutes of silence. Keys are judged
by the words in their names, which all architectures share, never by the model type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.static.piece import shown

# Built one by one. The deepest model known has 200 layers.
_DEPTH = re.compile(
    r"(?:\w+_)?(?:num|n)_(?:\w+_)?(?:layers?|blocks)|(?:encoder|decoder|text|vision|audio)_layers"
)
# Heads and experts. One architecture has 16,384 experts.
_COUNT = re.compile(
    r"(?:\w+_)?(?:num|n)_(?:\w+_)?(?:heads?|experts)|(?:encoder|decoder)_attention_heads"
)
# Widths. The widest hidden layer known has 53,248 units.
_WIDTH = re.compile(
    r"(?:\w+_)?(?:hidden_size|intermediate_size|hidden_dim|ffn_dim|head_dim|embed_dim)"
    r"|d_model|d_ff|d_kv|d_inner|n_embd|n_inner|projection_dim"
)
_VOCABULARY = re.compile(r"(?:\w+_)?vocab_size")
# Without these there is no model: 0 is as wrong as -1. Elsewhere 0 means "none of these".
_NEEDED = re.compile(
    r"hidden_size|vocab_size|num_hidden_layers|num_attention_heads|d_model|n_embd|n_layer|n_head"
)
_LIMITS = ((_DEPTH, 10_000), (_COUNT, 1 << 18), (_WIDTH, 1 << 22), (_VOCABULARY, 1 << 28))
# Configs nest: text_config, vision_config, and inside those once or twice more.
_MAX_DEPTH = 16


def check_sizes(config: dict[str, Any], where: str) -> None:
    """Raise InputError, naming `where` and the key, for the first size that cannot be meant."""
    for path, key, value in _entries(config):
        limit = next((most for names, most in _LIMITS if names.fullmatch(key)), None)
        if limit is None or value is None:
            continue
        # One number for each layer (OpenELM) or each tower (LXMERT): each of them is a size.
        parts = value.values() if isinstance(value, dict) else value
        for size in parts if isinstance(value, (list, dict)) else [value]:
            problem = _problem(size, limit, needed=_NEEDED.fullmatch(key) is not None)
            if problem:
                raise InputError(f"{where}: {shown(path)} is {shown(size)}, {problem}; correct it")


def _problem(size: object, limit: int, *, needed: bool) -> str | None:
    if type(size) is not int:
        return "not a whole number"
    if size < 0:
        return "but a size cannot be negative"
    if size == 0 and needed:
        return "but a model needs at least one"
    if size > limit:
        return f"more than any model has (at most {limit:,})"
    return None


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every entry of the config and of the configs in it: dotted path, key, value."""
    todo = [("", config, 0)]
    while todo:
        prefix, current, depth = todo.pop()
        for key, value in current.items():
            yield f"{prefix}{key}", key, value
            # Sizes stand in configs, not in label maps or quantization tables.
            if isinstance(value, dict) and key.endswith("config") and depth < _MAX_DEPTH:
                todo.append((f"{prefix}{key}.", value, depth + 1))
