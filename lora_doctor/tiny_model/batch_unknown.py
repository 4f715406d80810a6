"""A value for an argument of forward that no maker knows: from its documentation, annotation, name
and the config."""

from __future__ import annotations

import inspect
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch_draft import Draft

# What a caller hands on from an earlier step or in place of another argument: never made up.
_NOT_MADE = re.compile(
    r"past_key_values|cache|labels?$|embeds$|(encoder|decoder|tower)_outputs$|^(output|return)_"
)
_WHOLE = re.compile(r"Long|Int(?!er)|long|\bint\b")
_TRUTH = re.compile(r"Bool|\bbool\b")


def can_guess(draft: Draft, name: str) -> bool:
    """Whether `name` is an argument of forward whose value may be made up."""
    parameter = draft.parameters.get(name)
    if parameter is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    return not _NOT_MADE.search(name)


def guess(draft: Draft, name: str, inputs: dict[str, Any]) -> Any:
    """A value for the argument `name`; None where nothing tells what it could be.

    Tensors have the documented shape ("of shape `(batch_size, max_state_dim)`"), else one that the
    name tells; without either a vector per sample, as long as the config says for this name.
    """
    import torch

    parameter = draft.parameters[name]
    said = "" if parameter.annotation is parameter.empty else str(parameter.annotation)
    documented, shape = _documented(draft, name, inputs)
    kind = f"{said} {documented}"
    if "Tensor" not in kind and said not in ("", "Any", "typing.Any"):
        return _plain(draft, name, said)
    if not shape:
        shape = _named_shape(draft, name, inputs)
    if name.endswith("mask"):
        return torch.ones(shape, dtype=torch.bool if _TRUTH.search(kind) else torch.long)
    if re.search(r"(lengths?|lens)$", name):
        longest = draft.frames if "audio" in draft.modalities else draft.seq_len
        return torch.full(shape, longest)
    if re.search(r"(sizes?|shapes?)$", name) and len(shape) == 2:
        return torch.full(shape, draft.image_size)
    if name == "position_ids":
        return torch.arange(shape[-1]).expand(shape).clone()
    if _TRUTH.search(kind):
        return torch.zeros(shape, dtype=torch.bool)
    if _WHOLE.search(kind) or re.search(r"(_ids?|_index|_indices|_idx)$", name):
        return torch.zeros(shape, dtype=torch.long)
    return torch.randn(shape, generator=draft.generator()) * 0.5


def _plain(draft: Draft, name: str, said: str) -> Any:
    """A number, a switch or a word; None for objects of other classes."""
    if _TRUTH.search(said):
        return False
    if re.search(r"\bint\b", said):
        return draft.settings.number(name, f"default_{name}", default=1)
    if re.search(r"\bfloat\b", said):
        return 1.0
    if re.search(r"\bstr\b", said):
        for node in draft.settings.nodes():
            for key in (name, f"default_{name}", f"{name}s"):
                value = node.values.get(key)
                value = value[0] if isinstance(value, (list, tuple)) and value else value
                if isinstance(value, str):
                    return value
    return None


def _documented(draft: Draft, name: str, inputs: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Type and shape of an argument as the docstring of forward has them; empty without."""
    text = inspect.getdoc(draft.model.forward) or ""
    match = re.search(
        rf"^\s*{re.escape(name)} \(`?([^`\n]*)`?(?: of shape `?\(([^)\n]*)\))?", text, re.MULTILINE
    )
    if match is None:
        return "", ()
    if not match[2]:
        return match[1], ()
    terms = [term.strip() for term in match[2].split(",") if term.strip()]
    return match[1], tuple(_size(draft, term, inputs) for term in terms)


def _size(draft: Draft, term: str, inputs: dict[str, Any]) -> int:
    """What a name in a documented shape stands for: `batch_size`, `hidden_size`, `3`."""
    if term.isdigit():
        return int(term)
    factors = [part.strip() for part in re.split(r"[*/+]", term)]
    if len(factors) > 1 and "*" in term and all(re.fullmatch(r"\w+", part) for part in factors):
        return math.prod(_size(draft, part, inputs) for part in factors)
    if re.search(r"batch|num_(images|clips|videos|audios|samples)", term):
        return draft.batch_size
    sound = inputs.get("input_values")
    if sound is not None and re.search(r"audio|sample|wave?|raw_speech", term):
        return int(sound.shape[-1])
    if re.search(r"seq|length|num_tokens", term):
        return _length(draft, inputs)
    if term in ("height", "width"):
        return draft.image_size
    if term == "num_channels":
        return draft.channels
    if re.search(r"frames", term):
        return draft.frames
    words = re.sub(r"^(config|self)\.", "", term)
    return draft.settings.number(words, f"max_{words}", f"num_{words}", default=4)


def _length(draft: Draft, inputs: dict[str, Any]) -> int:
    ids = inputs.get("input_ids")
    return int(ids.shape[1]) if ids is not None else draft.seq_len


def _named_shape(draft: Draft, name: str, inputs: dict[str, Any]) -> tuple[int, ...]:
    """A shape by the name alone: masks and ids beside the tokens, lengths one a sample, values as
    wide as the config's entry that is called like them (`state`: `max_state_dim`)."""
    b = draft.batch_size
    if re.search(r"(lengths?|lens|lang\w*_ids?|language_ids?|speaker\w*|timesteps?)$", name):
        return (b,)
    if re.search(r"(sizes?|shapes?)$", name):
        return (b, 2)
    if name.endswith("mask"):
        other = inputs.get(re.sub(r"_?(attention)?_?mask$", "", name))
        if other is not None and hasattr(other, "shape"):
            return tuple(other.shape[:2])
        return (b, _length(draft, inputs))
    if re.search(r"(_ids?|_index|_indices|_idx)$", name):
        return (b, _length(draft, inputs))
    stem = name.rstrip("s")
    for node in draft.settings.nodes():
        for key, value in node.values.items():
            named = re.search(rf"(^|_){re.escape(stem)}s?_(dim|size|features|channels)$", key)
            if named and isinstance(value, int) and value > 0:
                return (b, value)
    hidden = draft.settings.number("hidden_size", "d_model", "n_embd", default=8)
    return (b, _length(draft, inputs), hidden) if name.endswith("states") else (b, hidden)


def loss_argument(model: Any) -> str:
    """The argument that forward makes its loss from, where that is not `labels`; else empty."""
    try:
        source = inspect.getsource(inspect.unwrap(type(model).forward))
    except (OSError, TypeError):
        return ""
    pattern = r"if (\w+) is not None[^\n]*:\n(?:\s*#[^\n]*\n)*\s*(?:\w+_)?loss\b[^\n]*="
    found: list[str] = re.findall(pattern, source)
    takes = inspect.signature(model.forward).parameters
    return next((name for name in found if name in takes and name != "labels"), "")
