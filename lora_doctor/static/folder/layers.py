"""How many layers a checkpoint has, and how many its config announces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_doctor.static.folder.parts import Entry, entries, model_types_of, part_of, words
from lora_doctor.static.folder.sources import counts_its_layers
from lora_doctor.static.weights import Weights

_STACK = re.compile(r"((?:[A-Za-z_]\w*\.)*(?:layers?|blocks?|h))\.(\d{1,6})\.")
_DEPTH = re.compile(
    r"(?:\w+_)?(?:num|n)_(?:\w+_)?(?:layers?|blocks)|(?:\w+_)?(?:encoder|decoder)_layers|depth"
)
#: The deepest model known has 200 layers.
_MOST_LAYERS = 10_000
#: From the most usual name on; the first that a section has is the number of its layers.
_PLAIN = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
#: Layers behind the last one that predict further tokens; transformers leaves them out.
_FURTHER = re.compile(r"\w*(?:nextn|mtp)\w*")


@dataclass(frozen=True)
class StackMismatch:
    """A stack of layers that is not as deep as its config says.

    ``missing`` and ``left_over`` are layer numbers: announced and not in the checkpoint, in the
    checkpoint and not announced. ``found`` counts the layers of the checkpoint.
    """

    stack: str
    key: str
    announced: int
    found: int
    missing: tuple[int, ...]
    left_over: tuple[int, ...]


def stack_mismatches(config: Mapping[str, Any], weights: Weights) -> tuple[StackMismatch, ...]:
    """Stacks of layers whose depth differs from what the config announces.

    Nothing for a stack that no one key is about, or several stacks share, or whose class computes
    with its depth.
    """
    stacks: dict[str, set[int]] = {}
    for name in weights.tensors:
        found = _STACK.match(name)
        if found and not re.search(r"\.\d+\.", f".{found[1]}."):
            stacks.setdefault(found[1], set()).add(int(found[2]))
    every = list(entries(config))
    depths = [e for e in every if _DEPTH.fullmatch(e.key) and _natural(e.value)]
    further = sum(e.value for e in every if _FURTHER.fullmatch(e.key) and _natural(e.value))
    paired: dict[str, list[tuple[str, Entry]]] = {}
    for stack in stacks:
        key = _depth_of(stack, depths)
        if key is not None:
            paired.setdefault(key.path, []).append((stack, key))
    mismatches = []
    for pairs in paired.values():
        if len(pairs) != 1:
            continue
        ((stack, key),) = pairs
        if counts_its_layers(model_types_of(config, key.section)):
            mismatch = _compared(stack, stacks[stack], key, further)
            mismatches += [mismatch] if mismatch else []
    return tuple(mismatches)


def _compared(stack: str, numbers: set[int], key: Entry, further: int) -> StackMismatch | None:
    announced = int(key.value)
    missing = tuple(number for number in range(announced) if number not in numbers)
    left_over = tuple(sorted(number for number in numbers if number >= announced + further))
    if not missing and not left_over:
        return None
    return StackMismatch(stack, key.path, announced, len(numbers), missing, left_over)


def _depth_of(stack: str, depths: list[Entry]) -> Entry | None:
    """The entry that says how deep this stack is; ``None`` where there is a doubt."""
    # Mamba calls its base model "backbone"; elsewhere it is a tower of its own.
    part = part_of(re.sub(r"^backbone\.(?=layers$)", "", stack))
    if part == "other":
        return None
    path = stack
    first = stack.removeprefix("model.").partition(".")[0]
    own = [entry for entry in depths if entry.section == first]
    if own:  # a section of the same name: `encoder`, `text_encoder`
        path = stack.removeprefix("model.").partition(".")[2]
        depths = own
    else:
        depths = [e for e in depths if part_of(e.section) == part and part_of(e.key) != "other"]
        if part != "text":
            depths = [entry for entry in depths if part_of(entry.section) == part]
    role = _role(path)
    named = [entry for entry in depths if role and role in words(entry.key)]
    plain = [entry for entry in depths if entry.key in _PLAIN]
    chosen = named or [entry for entry in plain if not _role(entry.section)] or plain
    if len({entry.section for entry in chosen}) != 1:
        return None
    chosen = chosen if named else sorted(chosen, key=lambda entry: _PLAIN.index(entry.key))
    return None if named and len({entry.value for entry in named}) != 1 else chosen[0]


def _role(path: str) -> str | None:
    """``encoder`` or ``decoder``, whichever a path names; None where it names both or none."""
    found = words(path) & {"encoder", "decoder"}
    return found.pop() if len(found) == 1 else None


def _natural(value: object) -> bool:
    return type(value) is int and 0 < value <= _MOST_LAYERS
