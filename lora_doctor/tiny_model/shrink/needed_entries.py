"""Entries that a default config leaves empty though forward needs them, as a user sets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_doctor.tiny_model.config_roles import Node, role_of
from lora_doctor.tiny_model.modalities import WITH_PLACEHOLDERS

_TOWER_CONFIGS = {"vision_config", "vision", "audio_config", "audio", "speech_config"}
#: The first of the ids that placeholders get; below those that shrinking moves others to.
_FIRST_PLACEHOLDER = 58


def needed_entries(
    node: Node, is_root: bool, before: dict[str, Any], ids: dict[int, int]
) -> dict[str, Any]:
    """Entries of one config of the tree, with small values.

    Args:
        before: its entries, those of the full size.
        ids: special tokens of the full size, to those of the small one.
    """
    found = dict(_experts(before))
    children = {child.path.rsplit(".", 1)[-1] for child in node.children}
    if children & _TOWER_CONFIGS and "text_config" in children:
        found.update(_placeholders(before))
    if is_root and _has_decoder(node, children):
        found.update(_first_tokens(node, ids))
    return found


def _experts(before: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if not any(value for key, value in before.items() if role_of(key, 0) == "experts"):
        return
    for key, value in before.items():
        if value is None and role_of(key, 0) == "topk":
            yield key, 2
        if value is None and role_of(key, 0) == "expert_groups" and "topk_group" in before:
            yield key, 1
            yield "topk_group", 1


def _placeholders(before: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    names = [
        f"{modality.name}_token_{end}" for modality in WITH_PLACEHOLDERS for end in ("id", "index")
    ]
    for number, key in enumerate(names):
        if key in before and before[key] is None:
            yield key, _FIRST_PLACEHOLDER + number


def _has_decoder(node: Node, children: set[str]) -> bool:
    is_encoder_decoder = bool(getattr(node.holder, "is_encoder_decoder", False))
    return is_encoder_decoder or {"encoder", "decoder"} <= children


def _first_tokens(node: Node, ids: dict[int, int]) -> Iterator[tuple[str, Any]]:
    """What a decoder starts with and is padded with, which it makes its inputs from."""
    inner = [part.values for part in node.walk()]
    for key, other in (
        ("pad_token_id", "eos_token_id"),
        ("decoder_start_token_id", "bos_token_id"),
    ):
        if getattr(node.holder, key, None) is None:
            known = [values.get(name) for name in (key, other) for values in inner]
            found = [number for number in known if isinstance(number, int)]
            # the root comes first: ids of its sub-configs are still the old ones
            yield key, ids.get(found[0], found[0]) if found else 0
