"""The rows of the census: what the auto classes of the installed transformers list."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: The auto classes of models that are trained to generate, and what each is called in the table.
GENERATION = {
    "AutoModelForCausalLM": "causal LM",
    "AutoModelForImageTextToText": "image-text-to-text",
    "AutoModelForVision2Seq": "image-text-to-text",
    "AutoModelForSeq2SeqLM": "text seq2seq",
    "AutoModelForSpeechSeq2Seq": "speech seq2seq",
}
#: Auto classes under the name that took their place: listed where that one is not there yet.
_REPLACED = {"AutoModelForVision2Seq": "AutoModelForImageTextToText"}


@dataclass(frozen=True, order=True)
class Pair:
    """An auto class and a `model_type` that it lists."""

    auto_class: str
    model_type: str

    @property
    def name(self) -> str:
        """Unique, and fit for a file name."""
        return f"{self.auto_class}-{self.model_type}"


def task(auto_class: str) -> str:
    """What a table calls the rows of an auto class: "image classification", "CTC"."""
    if auto_class in GENERATION:
        return GENERATION[auto_class]
    name = auto_class.removeprefix("AutoModel").removeprefix("For") or "base model"
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|[0-9]+|[a-z ]+", name)
    return " ".join(word if word.isupper() else word.lower() for word in words)


def gather(classes: Sequence[str] = ()) -> list[list[str]]:
    """Pairs of the installed transformers, as lists of two. Runs in a child process.

    Args:
        classes: patterns of auto classes; without, those for generation.
    """
    import transformers

    found = []
    for auto_class in _auto_classes(classes):
        if hasattr(transformers, _REPLACED.get(auto_class, "")):
            continue
        mapping = getattr(getattr(transformers, auto_class, None), "_model_mapping", None)
        found += [[auto_class, name] for name in _model_types(mapping)]
    return found


def _auto_classes(patterns: Sequence[str]) -> list[str]:
    if not patterns:
        return list(GENERATION)
    from transformers.models.auto import modeling_auto  # listing the whole package takes longer

    names = sorted(name for name in vars(modeling_auto) if name.startswith("AutoModel"))
    return [
        name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]


def _model_types(mapping: Any) -> list[str]:
    """The `model_type` values of an auto class's mapping; it keeps them beside the classes."""
    names = getattr(mapping, "_model_mapping", None) or {}
    known = getattr(mapping, "_config_mapping", None) or {}
    return sorted(name for name in names if name in known)
