"""What forward calls its inputs, and for which modalities a model has a tower of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lora_doctor.tiny_model.modalities import AUDIO, IMAGE

_WORDS = {
    "pixel_values": IMAGE.words,
    "input_features": AUDIO.words,
    "input_values": AUDIO.words,
}


def common_names(names: Iterable[str]) -> dict[str, str]:
    """An argument's own name to the one that most models have for it, where it only adds which
    kind of input is meant: `image_pixel_values`, `pixel_values_images`, `audio_input_features`."""
    own = list(names)
    found: dict[str, str] = {}
    for name in own:
        for common, words in _WORDS.items():
            same = re.fullmatch(rf"(?:(?:{words})_)?{common}(?:_(?:{words}))?", name)
            if same and name != common and common not in {*own, *found.values()}:
                found[name] = common
    return found


def renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`values` with the keys of `names` replaced, in their order."""
    return {names.get(key, key): value for key, value in values.items()}


def has_tower(model: Any, modality: str) -> bool:
    """Whether `model` has a part of its own, with weights, that is called after a modality."""
    named = re.compile(rf"(^|[._]){modality}s?(_|$)")
    return model is not None and any(
        named.search(path.rpartition(".")[2]) and next(module.parameters(), None) is not None
        for path, module in model.named_modules()
    )
