"""The rows of the census: what the auto classes of the installed transformers list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: The auto classes of models that are trained to generate, and what each is called in the table.
AUTO_CLASSES = {
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


def gather() -> list[list[str]]:
    """All pairs of the installed transformers, as lists of two. Runs in a child process."""
    import transformers

    found = []
    for auto_class in AUTO_CLASSES:
        if hasattr(transformers, _REPLACED.get(auto_class, "")):
            continue
        mapping = getattr(getattr(transformers, auto_class, None), "_model_mapping", None)
        found += [[auto_class, name] for name in _model_types(mapping)]
    return found


def _model_types(mapping: Any) -> list[str]:
    """The `model_type` values of an auto class's mapping; it keeps them beside the classes."""
    names = getattr(mapping, "_model_mapping", None) or {}
    known = getattr(mapping, "_config_mapping", None) or {}
    return sorted(name for name in names if name in known)
