"""Entries that a config leaves empty or lacks, filled as an error of the model's code calls for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_doctor.tiny_model.config_roles import Node, role_of, spread
from lora_doctor.tiny_model.model_error import ModelError

#: Rotary embeddings as most models have them.
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_BY_ROLE = {"experts": 4, "topk": 2}
_BY_NAME = {"vocab_size": 512, "pad_token_id": 0}


def missing_entries(root: Node, text: str) -> dict[str, Any]:
    """`'XConfig' object has no attribute 'pad_token_id'`: taken from a sub-config, or 0."""
    found: dict[str, Any] = {}
    for class_name, key in re.findall(r"'(\w+)' object has no attribute '(\w+)'", text):
        for node in root.walk():
            if type(node.holder).__name__ == class_name and key not in node.values:
                known = [n.values[key] for n in root.walk() if n.values.get(key) is not None]
                if key == "rope_theta":
                    known.append(10000.0)
                if known or role_of(key, 0) == "ids":
                    found[node.where(key)] = known[0] if known else 0
    return found


def empty_entries(root: Node, error: ModelError) -> dict[str, Any]:
    """Entries left None that the code computes with, and rotary settings that are not there."""
    found: dict[str, Any] = {}
    for node in root.walk():
        if has_attention(node.values):
            for entries in (_none, _rope_scaling, _windows, _rope_parameters):
                found |= {node.where(key): value for key, value in entries(node.values, error)}
    return found


def has_attention(values: Mapping[str, Any]) -> bool:
    """Whether a config says how wide its attention is, in which all guesses here are made."""
    return all(isinstance(values.get(key), int) for key in ("hidden_size", "num_attention_heads"))


def _none(values: dict[str, Any], error: ModelError) -> Iterator[tuple[str, Any]]:
    if re.search(r"NoneType|positional argument|not be None", error.message):
        for key, value in values.items():
            small = filling(key, values, error.words) if value is None else None
            if small is not None:
                yield key, small


def _rope_scaling(values: dict[str, Any], error: ModelError) -> Iterator[tuple[str, Any]]:
    text = error.words
    reads = "rope_scaling[" in text or "rope_scaling.get(" in text
    if reads and values.get("rope_scaling", 0) is None:
        yield "rope_scaling", {"rope_type": "default", **mrope_section(values, text)}


def mrope_section(values: dict[str, Any], text: str) -> dict[str, Any]:
    """Rotary sections where an error is about them: a quarter for time, the rest for height and
    width; else nothing."""
    if "mrope_section" not in text:
        return {}
    width, heads = values.get("hidden_size") or 0, values.get("num_attention_heads") or 1
    return {"mrope_section": spread((values.get("head_dim") or width // heads) // 2, [2, 3, 3])}


def _windows(values: dict[str, Any], error: ModelError) -> Iterator[tuple[str, Any]]:
    for key in re.findall(r"`?(\w*window\w*)`?[^.]*(?:not set|is None)", error.words):
        if values.get(key) is None and values.get("layer_types"):
            yield key, 16


def _rope_parameters(values: dict[str, Any], error: ModelError) -> Iterator[tuple[str, Any]]:
    if values.get("rope_parameters") or "rope_parameters" not in values:
        return
    key = error.message.strip("'\"") if error.kind == "KeyError" else ""
    if key.endswith("_attention"):
        kinds = sorted(set(values.get("layer_types") or [key]))
        yield "rope_parameters", {kind: dict(DEFAULT_ROPE) for kind in kinds}
    elif "NoneType" in error.message or key in ("rope_type", "rope_theta"):
        yield "rope_parameters", dict(DEFAULT_ROPE)


def filling(key: str, values: dict[str, Any], text: str) -> Any:
    """A small value for an entry that is None, by its name or its role; None where no guess is
    sound. `values`: the other entries of a config that :func:`has_attention`."""
    role = role_of(key, 0)
    if role == "head_dim":
        return values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    if role in ("heads", "kv_heads"):
        return values["num_attention_heads"]
    if key in _BY_NAME:
        return _BY_NAME[key]
    if role in _BY_ROLE:
        return _BY_ROLE[role]
    if "shared_expert" in key:
        return 1
    if role == "width" and "intermediate" in key:
        return values.get("intermediate_size")
    if key in ("layer_types", "mlp_layer_types"):
        return _kinds_of_layers(key, values.get("num_hidden_layers", 0))
    return 8.0 if key.startswith("clip") and "clamp" in text else None


def _kinds_of_layers(key: str, layers: int) -> list[str]:
    if key == "layer_types":
        return ["full_attention"] * layers
    return ["dense", *["sparse"] * (layers - 1)]
