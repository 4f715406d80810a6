"""A value for an argument of forward that has no maker: from its documentation, annotation, name
and the config."""

from __future__ import annotations

import inspect
import re
from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.values.choices import annotated
from lora_doctor.tiny_model.batch.values.documented import documented, text_length

# What a caller passes on from an earlier step or in place of another argument: never made up.
_NOT_MADE = re.compile(
    r"past_key_values|cache|labels?$|embeds$|(encoder|decoder|tower)_outputs$|^(output|return)_"
)
_INTEGER = re.compile(r"Long|Int(?!er)|long|\bint\b")
_BOOL = re.compile(r"Bool|\bbool\b")


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
    parameter = draft.parameters[name]
    annotation = "" if parameter.annotation is parameter.empty else str(parameter.annotation)
    in_docstring, shape = documented(draft, name, inputs)
    kind = f"{annotation} {in_docstring}"
    if "Tensor" not in kind and annotation not in ("", "Any", "typing.Any"):
        return _no_tensor(draft, name, annotation)
    if not shape:
        shape = _shape_by_name(draft, name, inputs, bool(_INTEGER.search(kind)))
    return _tensor(draft, name, kind, shape)


def _tensor(draft: Draft, name: str, kind: str, shape: tuple[int, ...]) -> Any:
    """`kind`: its type by annotation and docstring."""
    import torch

    if name.endswith("mask"):
        mask = torch.ones(shape, dtype=torch.bool if _BOOL.search(kind) else torch.long)
        if "global" in name and mask.dim() > 1:
            # Longformer's: with global attention everywhere nothing goes through the local one.
            mask[..., mask.shape[-1] // 4 :] = 0
        return mask
    if re.search(r"(lengths?|lens)$", name):
        longest = draft.audio.frames if "audio" in draft.modalities else draft.seq_len
        return torch.full(shape, longest)
    if re.search(r"(sizes?|shapes?)$", name) and len(shape) == 2:
        return torch.full(shape, draft.image.size)
    if name == "position_ids":
        return torch.arange(shape[-1]).expand(shape).clone()
    if _BOOL.search(kind):
        return torch.zeros(shape, dtype=torch.bool)
    if _INTEGER.search(kind) or re.search(r"(_ids?|_index|_indices|_idx)$", name):
        # Of what is counted there is something.
        return torch.full(shape, int(name.startswith(("num_", "n_"))), dtype=torch.long)
    return torch.randn(shape, generator=draft.generator()) * 0.5


def _no_tensor(draft: Draft, name: str, annotation: str) -> Any:
    """A number, a switch, a string or one of a few values; None for objects of other classes."""
    chosen = annotated(draft, name)
    if chosen is not None:
        return chosen
    if _BOOL.search(annotation):
        return False
    if re.search(r"\bint\b", annotation):
        return draft.entries.number(name, f"default_{name}", default=1)
    if re.search(r"\bfloat\b", annotation):
        return 1.0
    return _string(draft, name) if re.search(r"\bstr\b", annotation) else None


def _string(draft: Draft, name: str) -> str | None:
    """What the config has under this name: the value, the default or the first of several."""
    for node in draft.entries.nodes():
        for key in (name, f"default_{name}", f"{name}s"):
            value = node.values.get(key)
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, str):
                return value
    return None


def _shape_by_name(
    draft: Draft, name: str, inputs: dict[str, Any], integer: bool
) -> tuple[int, ...]:
    """A shape by the name alone: masks, ids and other integers beside the tokens, lengths one per
    sample, values as wide as the config's entry of the same name (`state`: `max_state_dim`)."""
    b = draft.batch_size
    if re.search(r"(lengths?|lens|lang\w*_ids?|language_ids?|speaker\w*|timesteps?)$", name):
        return (b,)
    if re.search(r"(sizes?|shapes?)$", name):
        return (b, 2)
    if name.endswith("mask"):
        other = inputs.get(re.sub(r"_?(attention)?_?mask$", "", name))
        if other is not None and hasattr(other, "shape"):
            return tuple(other.shape[:2])
        return (b, text_length(draft, inputs))
    if re.search(r"(_ids?|_index|_indices|_idx)$", name):
        return (b, text_length(draft, inputs))
    stem = name.rstrip("s")
    for node in draft.entries.nodes():
        for key, value in node.values.items():
            named = re.search(rf"(^|_){re.escape(stem)}s?_(dim|size|features|channels)$", key)
            if named and isinstance(value, int) and value > 0:
                return (b, value)
    if integer:
        return (b, text_length(draft, inputs))
    hidden = draft.entries.number("hidden_size", "d_model", "n_embd", default=8)
    return (b, text_length(draft, inputs), hidden) if name.endswith("states") else (b, hidden)


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
