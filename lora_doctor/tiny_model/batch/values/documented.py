"""What the docstring of forward says about an argument: its type and its shape."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft


def documented(draft: Draft, name: str, inputs: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Type and shape of an argument as the docstring of forward has them; empty without."""
    kind, terms = _entry(draft, name)
    # Samples of several texts to choose from are made flat, and folded afterwards.
    sizes = tuple(_size(draft, term, inputs) for term in terms if term != "num_choices")
    if sizes and not re.search("batch|num_images", terms[0]) and _first_of(draft, name):
        sizes = (1, *sizes)
    return kind, sizes


def documented_terms(draft: Draft, name: str) -> tuple[str, ...]:
    """The dimensions of an argument as they are written: `batch_size * num_codebooks`, `1`."""
    return _entry(draft, name)[1]


def text_length(draft: Draft, inputs: dict[str, Any]) -> int:
    """Tokens of a sample."""
    ids = inputs.get("input_ids")
    return int(ids.shape[1]) if ids is not None else draft.seq_len


def _entry(draft: Draft, name: str) -> tuple[str, tuple[str, ...]]:
    text = inspect.getdoc(draft.model.forward) or ""
    own = draft.own_names.get(name, name)
    match = re.search(
        rf"^\s*{re.escape(own)} \(`?([^`\n]*)`?(?: of shape `?\(([^)\n]*)\))?", text, re.MULTILINE
    )
    if match is None:
        return "", ()
    return match[1], tuple(term.strip() for term in (match[2] or "").split(",") if term.strip())


def _first_of(draft: Draft, name: str) -> bool:
    """Whether forward takes the first of this argument: it is a batch, whatever is written (JEV's
    `marks = marks[0]`, of documented shape `(num_marks,)`)."""
    try:
        source = inspect.getsource(inspect.unwrap(type(draft.model).forward))
    except (OSError, TypeError):
        return False
    return (
        re.search(rf"[=,]\s*{re.escape(draft.own_names.get(name, name))}\[0\]", source) is not None
    )


def _size(draft: Draft, term: str, inputs: dict[str, Any]) -> int:
    """What a name in a documented shape stands for: `batch_size`, `hidden_size`, `3`."""
    if term.isdigit():
        return int(term)
    factors = [part.strip() for part in re.split(r"[*/+]", term)]
    if len(factors) > 1 and "*" in term and all(re.fullmatch(r"\w+", part) for part in factors):
        return math.prod(_size(draft, part, inputs) for part in factors)
    if re.search(r"batch|num_(images|clips|videos|audios|samples)", term):
        return draft.batch_size
    waveform = inputs.get("input_values")
    if waveform is not None and re.search(r"audio|sample|wave?|raw_speech", term):
        return int(waveform.shape[-1])
    if re.search(r"seq|length|num_tokens", term):
        return text_length(draft, inputs)
    if term in ("height", "width"):
        return draft.image.size
    if term == "num_channels":
        return draft.image.channels
    if re.search(r"frames", term):
        return draft.audio.frames
    words = re.sub(r"^(config|self)\.", "", term)
    return draft.entries.number(words, f"max_{words}", f"num_{words}", default=4)
