"""One small config from a config and choices: each entry by its role, then what ties them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from lora_doctor.tiny_model.config_roles import (
    Node,
    id_map,
    is_numbers,
    map_ints,
    role_of,
    small_head_dim,
    small_heads,
    tree,
    vocab_map,
    width_map,
)
from lora_doctor.tiny_model.per_layer import renumbered, set_overrides
from lora_doctor.tiny_model.shrink.heads import fix_heads
from lora_doctor.tiny_model.shrink.image import Grid, fix_image, shrink_tiles, shrink_tokens
from lora_doctor.tiny_model.shrink.layers import in_proportion, plan_layers
from lora_doctor.tiny_model.shrink.needed_entries import needed_entries
from lora_doctor.tiny_model.shrink.rope import fix_rope
from lora_doctor.tiny_model.shrink.sizes import Changes, Sizes


class _Maps(NamedTuple):
    """Numbers of the full size to small ones, the same in the whole tree of configs."""

    widths: dict[int, int]
    vocab: dict[int, int]
    ids: dict[int, int]


def apply_sizes(config: Any, sizes: Sizes) -> tuple[Any, Changes]:
    """A shrunken deep copy of `config`, and what was changed."""
    small = copy.deepcopy(config)
    root = tree(small)
    maps = _maps(root, sizes)
    changes = Changes()
    grids: list[Grid] = []
    for node in list(root.walk()):
        grids += _shrink_node(node, root, sizes, maps, changes)
    if "tokens" not in sizes.keep_roles:
        shrink_tokens(root, grids, changes)
    shrink_tiles(root, grids, changes)
    for where, value in sizes.overrides:
        node, key = find_entry(root, where)
        old = node.values.get(key)
        node.set(key, value)
        changes.note("repaired", node.path, key, old, value)
    return small, changes


def _maps(root: Node, sizes: Sizes) -> _Maps:
    ids = {} if "ids" in sizes.keep_roles else id_map(root)
    vocab = {} if "vocab" in sizes.keep_roles else vocab_map(root, len(ids))
    return _Maps(width_map(root, sizes.base), vocab, ids if vocab else {})


def _shrink_node(node: Node, root: Node, sizes: Sizes, maps: _Maps, changes: Changes) -> list[Grid]:
    """One config of the tree, in place; how many patches its images had, and have now."""
    before = dict(node.values)
    new: dict[str, tuple[str, Any]] = {}
    kept = {} if "depth" in sizes.keep_roles else _shrink_layers(node, new, sizes, changes)
    _shrink_entries(node, before, new, sizes, maps)
    for key, value in needed_entries(node, node is root, before, maps.ids).items():
        before.setdefault(key, None)
        new[key] = ("empty before", value)
    _fix_feature_widths(before, new)
    _fix_cutoffs(before, new)
    grids = fix_image(before, new, sizes)
    fix_rope(before, new)
    for key, (role, value) in new.items():
        if key not in sizes.keep_keys and value != before[key]:
            node.set(key, value)
            changes.note(role, node.path, key, before[key], value)
    if node.own_entries:
        for layer, entries in node.own_entries.items():
            node.own_entries[layer] = _own_entries(node, before, entries, sizes, maps)
        layers = kept.get(before.get("num_hidden_layers") or 0)
        node.own_entries = renumbered(node.own_entries, layers)
        set_overrides(node.holder, node.own_entries)
    _plain_settings(node, changes)
    return grids


def _shrink_layers(
    node: Node, new: dict[str, tuple[str, Any]], sizes: Sizes, changes: Changes
) -> dict[int, list[int]]:
    """Depths and what is counted in layers, into `new`. Returns the number of layers before, to the
    numbers of those that are left."""
    plan = plan_layers(node, sizes.min_depth)
    new.update({key: ("layers", value) for key, value in plan.values.items()})
    together = in_proportion(node, plan)
    changes.multiples = changes.multiples or bool(together)
    if sizes.in_proportion:
        new.update({key: ("layers", value) for key, value in together.items()})
    return plan.kept


def _shrink_entries(
    node: Node,
    before: dict[str, Any],
    new: dict[str, tuple[str, Any]],
    sizes: Sizes,
    maps: _Maps,
) -> None:
    """Each entry by its role, into `new`."""
    for key, value in before.items():
        role = role_of(key, value)
        if role == "other" and node.is_table:
            role = role_of(node.path.rpartition(".")[2], value)
        if role in sizes.keep_roles:
            continue
        current = new[key][1] if key in new else value
        result = _shrink_entry(key, current, role, maps)
        if result != current:
            new[key] = (role, result)
    fix_heads(before, new, sizes)
    _fix_experts(node, before, new)


def _own_entries(
    node: Node,
    before: dict[str, Any],
    entries: dict[str, Any],
    sizes: Sizes,
    maps: _Maps,
) -> dict[str, Any]:
    """What a single layer has instead of the config's entries, shrunk beside the others."""
    own = {**before, **entries}
    new: dict[str, tuple[str, Any]] = {}
    _shrink_entries(node, own, new, sizes, maps)
    small = {k: v for k, (_, v) in new.items() if k not in sizes.keep_keys}
    for key, value in entries.items():
        other = before.get(key)
        if role_of(key, value) == "head_dim" and other and small.get(key) == node.values.get(key):
            small[key] = node.values[key] * max(1, value // other)  # it is larger for a reason
    return {key: small.get(key, value) for key, value in entries.items()}


def find_entry(root: Node, where: str) -> tuple[Node, str]:
    """The config and the key for a path like `vision_config.hidden_size`."""
    path, _, key = where.rpartition(".")
    return next(node for node in root.walk() if node.path == path), key


def _shrink_entry(key: str, value: Any, role: str, maps: _Maps) -> Any:
    """The small value of one entry, which may be a number or a list of numbers."""
    change = _change_of(role, key, maps)
    if change is not None:
        return map_ints(value, change)
    if role == "kv_heads":
        return _small_kv_heads(value)
    if role == "drop" and isinstance(value, (int, float)) and not isinstance(value, bool) and value:
        return 0.0
    return value


def _change_of(role: str, key: str, maps: _Maps) -> Callable[[int], int] | None:
    """What becomes of each number in an entry of this role; None for what is no plain number."""
    table = {"width": maps.widths, "channels": maps.widths, "vocab": maps.vocab, "ids": maps.ids}
    if role in table:
        return lambda number: table[role].get(number, number)
    if role == "positions":
        most = _most_positions(key)
        return lambda number: min(number, most)
    if role in _MOST:
        return lambda number: min(number, _MOST[role])
    return {"heads": small_heads, "head_dim": small_head_dim, "feature_layer": _near_end}.get(role)


#: By role, the most that is left of a number.
_MOST = {
    "experts": 4,
    "topk": 2,
    "compression": 4,  # of tokens to one: a short text must still give some
    "window": 16,
    "chunk": 16,  # of a sequence: as long as that of the batch
    "mask_span": 2,
    "state": 16,
}


def _most_positions(key: str) -> int:
    if "_2d_" in key:  # positions on a page, which is 1000 wide and high
        return 1024
    return 64 if "source" in key or "audio" in key else 256


def _near_end(layer: int) -> int:
    """A layer that a model with two of them has, counted from the end where it was before."""
    return max(-2, min(layer, 1))


def _small_kv_heads(value: Any) -> Any:
    if not is_numbers(value):
        return map_ints(value, small_heads)
    most = max(value)  # one number for each layer: fewer stay fewer
    fewer = max(1, small_heads(most) // 2)
    return map_ints(value, lambda n: small_heads(most) if n == most else min(n, fewer))


def _fix_experts(node: Node, before: dict[str, Any], new: dict[str, tuple[str, Any]]) -> None:
    groups = [k for k, v in before.items() if role_of(k, v) == "expert_groups"]
    has_experts = any(role_of(k, v) == "experts" for k, v in before.items())
    for key, value in before.items():
        role = role_of(key, value)
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if role == "topk" and (not has_experts or (key == "top_k" and not _takes(node, key))):
            new.pop(key, None)  # the sampling setting of the same name, which every config had
        if role == "expert_groups" and value > 1:
            new[key] = ("experts", 2)
        if role == "expert_topgroups" and groups:
            old = before[groups[0]]
            new[key] = ("experts", 1 if isinstance(old, int) and value < old else min(value, 2))


def _takes(node: Node, key: str) -> bool:
    """Whether the config's own class names this entry among its arguments."""
    return isinstance(node.holder, dict) or key in inspect.signature(type(node.holder)).parameters


def _fix_feature_widths(before: dict[str, Any], new: dict[str, tuple[str, Any]]) -> None:
    """A width that joins the outputs of listed layers follows the length of the list."""
    after = {**before, **{key: value for key, (_, value) in new.items()}}
    widths = [
        k for k, v in before.items() if isinstance(v, int) and role_of(k, v) == "width" and v > 0
    ]
    for listed, numbers in before.items():
        if not is_numbers(numbers) or role_of(listed, numbers) != "layer_index":
            continue
        for extra in (0, 1):
            count = len(numbers) + extra
            for wide in widths:
                narrow = [k for k in widths if before[k] * count == before[wide] and count > 1]
                if narrow and len(after[listed]) != len(numbers):
                    new[wide] = ("width", after[narrow[0]] * (len(after[listed]) + extra))


def _fix_cutoffs(before: dict[str, Any], new: dict[str, tuple[str, Any]]) -> None:
    """Where an adaptive softmax cuts the vocabulary (Transformer-XL): the same shares of it."""
    old = before.get("vocab_size")
    if "vocab_size" not in new or not isinstance(old, int):
        return
    small = new["vocab_size"][1]
    for key, cuts in before.items():
        if key.endswith("cutoffs") and is_numbers(cuts) and max(cuts) <= old:
            new[key] = ("vocab", type(cuts)(max(1, cut * small // old) for cut in cuts))


def _plain_settings(node: Node, changes: Changes) -> None:
    """float32, and no quantization: how the tiny model is quantized is the caller's matter."""
    for key in ("dtype", "torch_dtype"):
        if node.values.get(key) is not None:
            node.set(key, "float32" if isinstance(node.values[key], str) else _float32())
    if not isinstance(node.holder, dict) and "quantization_config" in vars(node.holder):
        del node.holder.quantization_config
        changes.note("quantization", node.path, "quantization_config", "set", "removed")


def _float32() -> Any:
    import torch

    return torch.float32
