"""Entries that do not fit each other, or are not what the code requires, read from its errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lora_doctor.tiny_model.config_roles import Node, tree
from lora_doctor.tiny_model.model_error import ModelError
from lora_doctor.tiny_model.shrink.empty_entries import empty_entries, missing_entries
from lora_doctor.tiny_model.shrink.sections import ids_of_code, required_sections, rope_sections
from lora_doctor.tiny_model.shrink.sizes import Sizes
from lora_doctor.tiny_model.shrink.ties import (
    tie_backbone,
    tie_channels,
    tie_inputs,
    tie_stages,
    tie_towers,
    tie_vocabularies,
)
from lora_doctor.tiny_model.shrink.widths import agreed_widths, required_rows


def repair(sizes: Sizes, model: Any, config: Any, errors: list[ModelError]) -> list[Sizes]:
    """The sizes with what errors call for written into single entries; none where that is there.

    Args:
        model: what was built from `config`, the small one; None where nothing could be.
        errors: what was raised, for the fullest batch first.
    """
    root = tree(config)
    # The first was raised before other layouts were guessed, whose sizes mean nothing.
    overrides = agreed_widths(root, errors[0].words if errors else "")
    for error in errors[:1] if overrides else errors:
        for reader in _READERS:
            overrides.update(reader(root, error))
        if model is not None:
            overrides.update(ids_of_code(root, model, error.words))
            overrides.update(tie_towers(root, model, error.words))
    known = dict(sizes.overrides)
    if all(known.get(where) == value for where, value in overrides.items()):
        return []
    why = f"repaired: {'; '.join(map(str, errors))[:300]}"
    return [sizes.with_overrides({**known, **overrides}, why)]


def _required_flags(root: Node, text: str) -> dict[str, Any]:
    """Switches that an error requires ("make sure that `is_decoder=True`"), and those that
    turn on what it says is not available ("Fast Mamba kernels are not available")."""
    found: dict[str, Any] = {}
    if re.search(r"not available|not installed", text):
        for node in root.walk():
            for key, value in node.values.items():
                words = key.removeprefix("use_").split("_") if key.startswith("use_") else []
                if value is True and words and all(re.search(rf"(?i)\b{w}", text) for w in words):
                    found[node.where(key)] = False
    for key, required in re.findall(r"\b(\w+)\s?=\s?(True|False)\b", text):
        for node in root.walk():
            value = node.values.get(key)
            if isinstance(value, bool) and value is not (required == "True"):
                found[node.where(key)] = required == "True"
    return found


def _position_factors(root: Node, text: str) -> dict[str, Any]:
    """Factors of position embeddings that must multiply to the length of the batch."""
    match = re.search(r"factors: \((\d+), (\d+)\) .*sequence_length: (\d+)", text)
    if not match:
        return {}
    old, length = [int(match[1]), int(match[2])], int(match[3])
    return {
        node.where(key): type(value)([4, length // 4])
        for node in root.walk()
        for key, value in node.values.items()
        if isinstance(value, (list, tuple)) and list(value) == old
    }


def _unchosen(root: Node, text: str) -> dict[str, Any]:
    """A default that an error names and that is not set, of several that the config lists:
    `default_language` is the first of `languages`."""
    found: dict[str, Any] = {}
    for node in root.walk():
        for key, value in node.values.items():
            listed = node.values.get(f"{key.removeprefix('default_')}s")
            if value is None and key in text and isinstance(listed, (list, tuple)) and listed:
                found[node.where(key)] = listed[0]
    return found


def _of_words(
    reader: Callable[[Node, str], dict[str, Any]],
) -> Callable[[Node, ModelError], dict[str, Any]]:
    """A reader that needs no more of an error than what it says."""
    return lambda root, error: reader(root, error.words)


#: Each gives entries, by their paths, and the values that an error calls for. A later one wins.
_READERS: tuple[Callable[[Node, ModelError], dict[str, Any]], ...] = (
    *map(_of_words, (rope_sections, required_sections, missing_entries)),
    empty_entries,
    *map(_of_words, (_required_flags, _position_factors, _unchosen)),
    *map(_of_words, (tie_vocabularies, tie_stages, tie_channels, tie_inputs, tie_backbone)),
    _of_words(required_rows),
)
