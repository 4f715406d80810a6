"""Fewer layers, every kind of layer still there.

Layers differ by what a config says about them: a list with one entry per layer (`layer_types`), a
list of layer numbers (`cross_attention_layers`), a threshold (`first_k_dense_replace`), a period
(`decoder_sparse_step`). The first layer of each kind is kept, and the lists are cut to these.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from lora_doctor.tiny_model.config_roles import Node, is_numbers, role_of
from lora_doctor.tiny_model.per_layer import run_lengths

_NOT_PER_LAYER = re.compile(
    r"kernel|stride|conv|dilation|ratio|rates|padding|token|norm_(mean|std)"
)
#: A few names of kinds that are repeated over all layers (RecurrentGemma's `block_types`).
_CYCLE = re.compile(r"(layer|block|mixer)s?_(kinds?|types?|pattern)$")
_MAX_KINDS = 8


@dataclass(frozen=True)
class LayerPlan:
    """What the depth entries of one config become; `depth` is the main number of layers.

    `kept`: number of layers before, to the numbers of those that are left.
    """

    values: dict[str, Any]
    depth: int
    kept: dict[int, list[int]]


def plan_layers(node: Node, min_depth: int) -> LayerPlan:
    """Shrunken depth, per-layer lists, layer numbers, thresholds and periods of one config.

    `min_depth` (layers) is kept at least where the original has as many.
    """
    values: dict[str, Any] = {}
    depths = _depths(node)
    for key, value in node.values.items():
        role = role_of(key, value)
        if role == "depths" and len(value) not in depths.values():
            # Two per stage: a shifted window comes second (Swin).
            values[key] = type(value)(min(v, 2) for v in value)
            values.update(_numbered_through(node, list(value)))
        elif role == "period" and isinstance(value, int) and not isinstance(value, bool):
            values[key] = min(value, 2)
        elif role == "offset" and isinstance(value, int):
            values[key] = min(value, 1)
    main = 0
    left: dict[int, list[int]] = {}
    for length in sorted(set(depths.values())):
        kept = left[length] = _kept_layers(node, length, min_depth)
        main = len(kept)
        for key, depth in depths.items():
            if depth == length:
                values[key] = len(kept)
        values.update(_cut(node, length, kept))
    return LayerPlan({k: v for k, v in values.items() if v != node.values[k]}, main, left)


def _numbered_through(node: Node, stages: list[int]) -> dict[str, Any]:
    """Lists of numbers that are counted through all stages (Hiera's `global_attention_blocks`),
    where each stage keeps two: of a stage with listed ones and others, one of each kind."""
    found: dict[str, Any] = {}
    for key, listed in node.values.items():
        if not _NUMBERED.search(key) or not is_numbers(listed) or max(listed) >= sum(stages):
            continue
        new: list[int] = []
        start = small = 0
        for count in stages:
            inside = [n - start for n in listed if start <= n < start + count]
            kept = min(count, 2)
            if len(inside) == count:
                new += range(small, small + kept)
            elif inside:
                new.append(small if inside == [0] else small + kept - 1)
            start, small = start + count, small + kept
        found[key] = type(listed)(new)
    return found


#: Blocks that a list names by their numbers.
_NUMBERED = re.compile(r"^global_att\w*_(blocks|layers|indexes)$")


def in_proportion(node: Node, plan: LayerPlan) -> dict[str, int]:
    """Depths that are multiples of the smallest one, as the same multiples of what that became:
    layers that are run in cycles are counted once for each (HRM's `num_hidden_layers`)."""
    depths = _depths(node)
    for key, value in node.values.items():
        if re.search(r"layers_per_", key) and type(value) is int and value > 1:
            depths.setdefault(key, value)
    low = min(depths.values(), default=0)
    if all(n == low or n % low for n in depths.values()):
        return {}
    small = next((plan.values[k] for k, n in depths.items() if n == low and k in plan.values), 2)
    return {key: n // low * small for key, n in depths.items() if n % low == 0}


def _depths(node: Node) -> dict[str, int]:
    stages = {
        len(v)
        for k, v in node.values.items()
        if is_numbers(v) and role_of(k, v) in ("depths", "width")
    }
    found: dict[str, int] = {}
    for key, value in node.values.items():
        if role_of(key, value) == "depth" and value > 2:
            # `num_layers == len(depths)` counts stages, not layers.
            if value in stages and any(role_of(k, v) == "depths" for k, v in node.values.items()):
                continue
            found[key] = value
    return found


def _per_layer(node: Node, length: int) -> dict[str, list[Any]]:
    return {
        key: [value[layer % len(value)] for layer in range(length)]
        for key, value in node.values.items()
        if _is_cycle(key, value, length)
    } | {
        key: list(value)
        for key, value in node.values.items()
        if isinstance(value, (list, tuple))
        and len(value) == length
        and not _NOT_PER_LAYER.search(key)
        # names of kinds may stand under what is else numbers (GPT-Neo's `attention_layers`)
        and (role_of(key, value) != "layer_index" or not is_numbers(value))
    }


def _is_cycle(key: str, value: Any, length: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and 1 < len(value) < length
        and all(isinstance(item, str) for item in value)
        and _CYCLE.search(key) is not None
    )


def _layer_numbers(node: Node, length: int) -> dict[str, list[int]]:
    """Lists of layer numbers of a tower with `length` layers."""
    found = {}
    deepest = max(_depths(node).values(), default=0)
    for key, value in node.values.items():
        if role_of(key, value) != "layer_index" or not is_numbers(value) or deepest != length:
            continue
        if key == "out_indices" and "stage_names" in node.values:
            continue  # of a backbone: they go with the names of its stages
        if all(0 <= v <= length for v in value) and not (
            len(value) == length and set(value) <= {0, 1}
        ):
            found[key] = list(value)
    return found


def _flags(node: Node, length: int) -> dict[str, list[int]]:
    """Lists of 0/1 per layer that are named like layer numbers (`no_rope_layers`)."""
    return {
        key: list(value)
        for key, value in node.values.items()
        if role_of(key, value) == "layer_index"
        and is_numbers(value)
        and len(value) == length
        and set(value) <= {0, 1}
    }


def _thresholds(node: Node, length: int) -> dict[str, tuple[int, bool]]:
    """Layer number at which the kind changes, and whether the key counts from the end."""
    found = {}
    for key, value in node.values.items():
        if role_of(key, value) == "threshold" and isinstance(value, int) and 0 < value < length:
            found[key] = (length - value, True) if "shared" in key else (value, False)
    return found


def _kept_layers(node: Node, length: int, min_depth: int) -> list[int]:
    lists = {**_per_layer(node, length), **_flags(node, length)}
    if node.own_entries and length == node.values.get("num_hidden_layers"):
        lists["per_layer_config"] = [
            str(sorted(node.own_entries.get(layer, {}).items())) for layer in range(length)
        ]
    numbers = _layer_numbers(node, length)
    thresholds = _thresholds(node, length)

    def kind(layer: int, coarse: bool) -> tuple[Any, ...]:
        entries = tuple(
            repr(v[layer])
            for v in lists.values()
            if not coarse or isinstance(v[layer], (str, bool)) or set(map(repr, v)) <= {"0", "1"}
        )
        listed = tuple(layer in v for v in numbers.values())
        return entries, listed, tuple(layer >= at for at, _ in thresholds.values())

    kept: list[int] = []
    for coarse in (False, True):
        kinds: dict[tuple[Any, ...], int] = {}
        for layer in range(length):
            kinds.setdefault(kind(layer, coarse), layer)
        kept = sorted(kinds.values())
        if len(kept) <= 6:
            break
    kept = kept[:_MAX_KINDS]
    wanted = max(min_depth, len(kept))
    periods = [
        v
        for k, v in node.values.items()
        if role_of(k, v) == "period" and isinstance(v, int) and v > 1
    ]
    if periods:  # two of each period after the dense layers, so that both kinds occur
        wanted = max(wanted, 2 + sum(not end for _, end in thresholds.values()))
    # One more where the first is not an output (some count it from 0, some from 1), and those
    # behind the last one.
    outputs = [v for k, v in numbers.items() if k.endswith("out_indices")]
    spare = [(min(v) > 0) + max(0, length - 1 - max(v)) for v in outputs]
    wanted = max([wanted, *(len(v) + n for v, n in zip(outputs, spare, strict=True))])
    chosen = node.values.get("out_indices")
    if "stage_names" in node.values and isinstance(chosen, (list, tuple)):
        wanted = max(wanted, len(chosen))
    while len(kept) < min(wanted, length):
        # The kind that there are fewest of comes next: a second layer of it may be needed, to share
        # weights with the first (Zamba).
        times = Counter(kind(layer, coarse) for layer in kept)
        rest = [layer for layer in range(length) if layer not in kept]
        kept = sorted([*kept, min(rest, key=lambda layer: (times[kind(layer, coarse)], layer))])
    return kept


def _cut(node: Node, length: int, kept: list[int]) -> dict[str, Any]:
    """Entries that follow when of `length` layers those in `kept` are left."""
    return {
        **_cut_lists(node, length, kept),
        **_cut_numbers(node, length, kept),
        **_cut_thresholds(node, length, kept),
        **_cut_stages(node, length, kept),
    }


def _cut_lists(node: Node, length: int, kept: list[int]) -> dict[str, Any]:
    """Lists with one entry per layer, also those that are written as runs of equal ones."""
    values: dict[str, Any] = {}
    for key, entries in {**_per_layer(node, length), **_flags(node, length)}.items():
        values[key] = type(node.values[key])(entries[layer] for layer in kept)
    for key, value in node.values.items():
        kinds = run_lengths(value, length)
        if kinds is not None:
            values[key] = [[[kinds[layer] for layer in kept], 1]]
    return values


def _cut_numbers(node: Node, length: int, kept: list[int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, numbers in _layer_numbers(node, length).items():
        if key.endswith("out_indices"):  # their count is part of the architecture
            last = len(kept) - (length - max(numbers))  # as far from the end as before
            new = list(range(last + 1 - len(numbers), last + 1))
        else:
            new = [i for i, layer in enumerate(kept) if layer in numbers]
        values[key] = type(node.values[key])(new)
    return values


def _cut_thresholds(node: Node, length: int, kept: list[int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, (at, from_end) in _thresholds(node, length).items():
        before = sum(layer < at for layer in kept)
        values[key] = len(kept) - before if from_end else before
    for key, value in node.values.items():
        if role_of(key, value) == "threshold" and isinstance(value, int) and value >= length:
            values[key] = len(kept)
    return values


def _cut_stages(node: Node, length: int, kept: list[int]) -> dict[str, Any]:
    """Names of the stages of a backbone, where each layer is one; the first is the stem."""
    names, chosen = node.values.get("stage_names"), node.values.get("out_indices")
    if not isinstance(names, (list, tuple)) or len(names) != length + 1:
        return {}
    values: dict[str, Any] = {"stage_names": type(names)(names[: len(kept) + 1])}
    if isinstance(chosen, (list, tuple)):  # the stages that it puts out
        values["out_indices"] = list(range(len(kept) + 1 - len(chosen), len(kept) + 1))
    return values
