"""Rotary embeddings of a small config: what is counted in parts of a head follows the head."""

from __future__ import annotations

from typing import Any

from lora_doctor.tiny_model.config_roles import is_numbers, role_of, spread


def fix_rope(before: dict[str, Any], new: dict[str, tuple[str, Any]]) -> None:
    """Rotary parts follow the head dimension: `rotary_dim`, sections, long-context factors."""

    def head_dim(values: dict[str, Any]) -> int:
        for key in (
            "qk_rope_head_dim",
            "head_dim",
            "kv_channels",
            "attention_head_dim",
            "head_size",
        ):
            if isinstance(values.get(key), int) and values[key]:
                return int(values[key])
        width = next((values[k] for k in ("hidden_size", "n_embd", "d_model") if values.get(k)), 0)
        heads = next(
            (values[k] for k in ("num_attention_heads", "n_head", "num_heads") if values.get(k)), 0
        )
        ok = isinstance(width, int) and isinstance(heads, int) and heads > 0
        return width // heads if ok else 0

    after = {**before, **{key: value for key, (_, value) in new.items()}}
    old, small = head_dim(before), head_dim(after)
    if not old or not small or old == small:
        return
    for key, value in before.items():
        if role_of(key, value) == "rotary" and isinstance(value, int) and value:
            new[key] = ("rope", max(2, value * small // old // 2 * 2))
        elif isinstance(value, dict) and "rope" in key:
            new[key] = ("rope", _scale_rope(value, old, small))
        elif key.endswith("rope_section") and is_numbers(value):
            new[key] = ("rope", type(value)(spread(sum(value) * small // old, list(value))))


def _scale_rope(rope: dict[str, Any], old: int, small: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in rope.items():
        if isinstance(value, dict):
            result[key] = _scale_rope(value, old, small)
        elif key.endswith("section") and is_numbers(value):
            result[key] = type(value)(spread(sum(value) * small // old, list(value)))
        elif key in ("long_factor", "short_factor") and isinstance(value, (list, tuple)):
            result[key] = type(value)(value[: max(1, len(value) * small // old)])
        elif key == "original_max_position_embeddings" and isinstance(value, int):
            result[key] = min(value, 64)
        else:
            result[key] = value
    return result
