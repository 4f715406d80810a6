"""The parts of a config and of a checkpoint, paired by what their names mean.

A config has sections (`text_config`, `vision_config`, `encoder`), a checkpoint has paths
(`language_model.model.layers.3`). No table of model types pairs them: the words in both do. Where
the words leave a doubt, nothing is paired.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["text", "vision", "audio", "other"]

_VISION = {"vision", "visual", "vit", "image", "img", "video", "siglip", "pixel", "vqmodel"}
_AUDIO = {"audio", "speech", "acoustic", "waveform"}
#: Beside the towers: what connects them, predicts further tokens, or is a model of its own.
_OTHER = {
    "qformer", "perceiver", "resampler", "projector", "connector", "adapter", "adapters", "bridge",
    "aligner", "mtp", "nextn", "draft", "medusa", "eagle", "talker", "token2wav", "code2wav",
    "codec", "vocoder", "backbone", "depth", "predictor", "prompt", "mask", "memory", "flow",
    "duration", "t2u", "codebook", "feat", "conv", "prenet", "postnet", "fusion", "cross",
    "generator", "quantizer", "sparse", "dense", "shared", "kv", "linear", "full", "swa",
}  # fmt: skip
#: Configs nest: text_config, vision_config, and inside those once or twice more.
_MAX_DEPTH = 6


@dataclass(frozen=True)
class Entry:
    """One entry of a config: its dotted path, its last key and its value."""

    path: str
    key: str
    value: Any
    #: The dotted path of the section that it stands in; empty for the config itself.
    section: str


def words(name: str) -> set[str]:
    """The words of a dotted, underscored name."""
    return set(re.split(r"[._\d]+", name.lower()))


def part_of(name: str) -> Part:
    """Which part of a model a path of a config or of a checkpoint means."""
    found = words(name)
    if found & _VISION:
        return "vision"
    if found & _AUDIO:
        return "audio"
    return "other" if found & _OTHER else "text"


def entries(config: Mapping[str, Any]) -> Iterator[Entry]:
    """Every entry of the config and of the configs in it."""
    todo: list[tuple[str, Mapping[str, Any], int]] = [("", config, 0)]
    while todo:
        section, current, depth = todo.pop(0)
        prefix = f"{section}." if section else ""
        for key, value in current.items():
            yield Entry(f"{prefix}{key}", str(key), value, section)
            nested = isinstance(value, dict) and (
                str(key).endswith("config") or isinstance(value.get("model_type"), str)
            )
            if nested and depth < _MAX_DEPTH and "quantization" not in str(key):
                todo.append((f"{prefix}{key}", value, depth + 1))


def model_types_of(config: Mapping[str, Any], section: str) -> tuple[str, ...]:
    """``model_type`` of a section, and of the config that it stands in, each once."""
    current: Any = config
    for key in section.split(".") if section else ():
        current = current.get(key) if isinstance(current, dict) else None
    named = [part.get("model_type") for part in (current, config) if isinstance(part, Mapping)]
    return tuple(dict.fromkeys(name for name in named if isinstance(name, str)))
