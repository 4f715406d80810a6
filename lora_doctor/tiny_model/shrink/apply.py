"""One small config from a config and choices: each entry by its role, then what ties them."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

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
from lora_doctor.tiny_model.shrink.image import Grid, fix_image, shrink_tiles, shrink_tokens
from lora_doctor.tiny_model.shrink.layers import in_proportion, plan_layers
from lora_doctor.tiny_model.shrink.rope import fix_rope
from lora_doctor.tiny_model.shrink.sizes import Changes, Sizes


def apply_sizes(config: Any, sizes: Sizes) -> tuple[Any, Changes]:
    """A shrunken deep copy of `config`, and what was changed."""
    small = copy.deepcopy(config)
    root = tree(small)
    changes = Changes()
    ids = {} if "ids" in sizes.keep_roles else id_map(root)
    vocab = {} if "vocab" in sizes.keep_roles else vocab_map(root, len(ids))
    if not vocab:
        ids = {}
    widths = width_map(root, sizes.base)
    grids: list[Grid] = []
    maps = (widths, vocab, ids)
    for node in list(root.walk()):
        before = dict(node.values)
        new: dict[str, tuple[str, Any]] = {}
        kept: dict[int, list[int]] = {}
        if "depth" not in sizes.keep_roles:
            plan = plan_layers(node, sizes.min_depth)
            new.update({key: ("layers", value) for key, value in plan.values.items()})
            kept = plan.kept
            together = in_proportion(node, plan)
            changes.multiples = changes.multiples or bool(together)
            if sizes.in_proportion:
                new.update({key: ("layers", value) for key, value in together.items()})
        _shrink_entries(node, before, new, sizes, maps)
        _fix_gaps(node, root, before, ids, new)
        _fix_feature_widths(before, new)
        _fix_cutoffs(before, new)
        grids += fix_image(before, new, sizes)
        fix_rope(before, new)
        for key, (role, value) in new.items():
            if key in sizes.keep_keys or value == before[key]:
                continue
            node.set(key, value)
            changes.note(role, node.path, key, before[key], value)
        if node.own_entries:
            depth = before.get("num_hidden_layers")
            for layer, entries in node.own_entries.items():
                node.own_entries[layer] = _own_entries(node, before, entries, sizes, maps)
            node.own_entries = renumbered(node.own_entries, kept.get(depth or 0))
            set_overrides(node.holder, node.own_entries)
        _plain_settings(node, changes)
    shrink_tokens(root, grids, changes)
    shrink_tiles(root, grids, changes)
    for where, value in sizes.overrides:
        node, key = find_entry(root, where)
        old = node.values.get(key)
        node.set(key, value)
        changes.note("repaired", node.path, key, old, value)
    return small, changes


def _shrink_entries(
    node: Node,
    before: dict[str, Any],
    new: dict[str, tuple[str, Any]],
    sizes: Sizes,
    maps: tuple[dict[int, int], dict[int, int], dict[int, int]],
) -> None:
    """Each entry by its role, into `new`. `maps`: of widths, vocabularies and token ids."""
    for key, value in before.items():
        role = role_of(key, value)
        if role == "other" and node.is_table:
            role = role_of(node.path.rpartition(".")[2], value)
        if role in sizes.keep_roles:
            continue
        current = new[key][1] if key in new else value
        result = _shrink_entry(key, current, role, *maps)
        if result != current:
            new[key] = (role, result)
    _fix_heads(node, before, new, sizes)
    _fix_experts(node, before, new)


def _own_entries(
    node: Node,
    before: dict[str, Any],
    entries: dict[str, Any],
    sizes: Sizes,
    maps: tuple[dict[int, int], dict[int, int], dict[int, int]],
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


def _shrink_entry(
    key: str,
    value: Any,
    role: str,
    widths: dict[int, int],
    vocab: dict[int, int],
    ids: dict[int, int],
) -> Any:
    if role in ("width", "channels"):
        return map_ints(value, lambda n: widths.get(n, n))
    if role == "vocab":
        return map_ints(value, lambda n: vocab.get(n, n))
    if role == "ids":
        return map_ints(value, lambda n: ids.get(n, n))
    if role == "kv_heads" and is_numbers(value):  # one for each layer: fewer stay fewer
        most = max(value)
        fewer = max(1, small_heads(most) // 2)
        return map_ints(value, lambda n: small_heads(most) if n == most else min(n, fewer))
    if role in ("heads", "kv_heads"):
        return map_ints(value, small_heads)
    if role == "head_dim":
        return map_ints(value, small_head_dim)
    if role == "experts":
        return map_ints(value, lambda n: min(n, 4))
    if role == "topk":
        return map_ints(value, lambda n: min(n, 2))
    if role == "positions":
        cap = 64 if "source" in key or "audio" in key else 256
        cap = 1024 if "_2d_" in key else cap  # places on a page, which is 1000 wide and high
        return map_ints(value, lambda n: min(n, cap))
    if role == "compression":  # of tokens to one: a short text must still give some
        return map_ints(value, lambda n: min(n, 4))
    if role == "window":
        return map_ints(value, lambda n: min(n, 16))
    if role == "chunk":  # of a sequence: as long as that of the batch
        return map_ints(value, lambda n: min(n, 16))
    if role == "mask_span":
        return map_ints(value, lambda n: min(n, 2))
    if role == "state":
        return map_ints(value, lambda n: min(n, 16))
    if role == "feature_layer":
        return map_ints(value, lambda n: max(-2, min(n, 1)))
    if role == "drop" and isinstance(value, (int, float)) and not isinstance(value, bool) and value:
        return 0.0
    return value


def _fix_heads(
    node: Node, before: dict[str, Any], new: dict[str, tuple[str, Any]], sizes: Sizes
) -> None:
    """Key/value groups stay fewer than heads; head_dim follows `heads * head_dim == k * width`."""

    def now(key: str) -> Any:
        return new[key][1] if key in new and key not in sizes.keep_keys else before[key]

    heads = {
        k: v
        for k, v in before.items()
        if isinstance(v, int) and role_of(k, v) in ("heads", "kv_heads")
    }
    queries = {k: v for k, v in heads.items() if role_of(k, v) == "heads"}
    if "kv_heads" not in sizes.keep_roles:
        for key, value in heads.items():
            if role_of(key, value) != "kv_heads" or value <= 1:
                continue
            partner = _partner(key, queries)
            if partner is not None and value < queries[partner] and now(partner) <= now(key):
                new[key] = ("kv_heads", max(1, now(partner) // 2))
    if "head_dim" in sizes.keep_roles:
        return
    widths = [
        (k, v)
        for k, v in before.items()
        if isinstance(v, int) and v > 0 and role_of(k, v) == "width" and not _INNER_WIDTH.search(k)
    ]
    for key, value in before.items():
        if role_of(key, value) != "head_dim" or not isinstance(value, int) or value <= 0:
            continue
        if key.startswith(("qk_", "v_head")) or before.get("qk_head_dim") == value:
            continue  # latent attention: its head dimensions are tied to each other by sums
        partner = _partner(key, queries)
        if partner is None:
            continue
        product = queries[partner] * value
        for width_key, width in widths:
            factor, rest = divmod(product, width)
            if rest == 0 and factor in (1, 2) and (factor == 1 or "expand" in "".join(before)):
                if now(width_key) * factor % now(partner) == 0:
                    new[key] = ("head_dim", now(width_key) * factor // now(partner))
                break
        else:
            for other, number in before.items():  # `mamba_d_ssm == mamba_n_heads * mamba_d_head`
                if number == product and role_of(other, number) == "other":
                    new[other] = ("head_dim", now(partner) * now(key))


_INNER_WIDTH = re.compile(r"inter|ffn|_ff$|mlp|rank|inner")


def _partner(key: str, queries: dict[str, int]) -> str | None:
    """The number-of-heads entry that belongs to `key`: the one with the longest common prefix."""
    if not queries:
        return None
    stem = re.sub(r"^(num|n)_", "", key)

    def likeness(name: str) -> tuple[int, bool]:
        other = re.sub(r"^(num|n)_", "", name)
        common = 0
        for a, b in zip(stem.split("_"), other.split("_"), strict=False):
            if a != b:
                break
            common += 1
        return common, name in ("num_attention_heads", "num_heads", "n_head", "n_heads")

    return max(queries, key=likeness)


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


def _fix_gaps(
    node: Node,
    root: Node,
    before: dict[str, Any],
    ids: dict[int, int],
    new: dict[str, tuple[str, Any]],
) -> None:
    """Entries that a default config leaves empty though forward needs them, as a user sets them."""
    routed = [v for k, v in before.items() if role_of(k, 0) == "experts"]
    if any(routed):
        for key, value in before.items():
            if value is None and role_of(key, 0) == "topk":
                new[key] = ("empty before", 2)
            if value is None and role_of(key, 0) == "expert_groups" and "topk_group" in before:
                new[key] = ("empty before", 1)
                new["topk_group"] = ("empty before", 1)
    children = {child.path.rsplit(".", 1)[-1] for child in node.children}
    senses = {"vision_config", "vision", "audio_config", "audio", "speech_config"}
    if children & senses and "text_config" in children:
        kinds = ("image", "video", "audio")
        names = [f"{kind}_token_{end}" for kind in kinds for end in ("id", "index")]
        for number, key in enumerate(names):
            if key in before and before[key] is None:
                new[key] = ("empty before", 58 + number)
    if node is not root:
        return
    if (
        bool(getattr(node.holder, "is_encoder_decoder", False))
        or {"encoder", "decoder"} <= children
    ):
        inner = [n.values for n in node.walk()]
        for key, other in (
            ("pad_token_id", "eos_token_id"),
            ("decoder_start_token_id", "bos_token_id"),
        ):
            if getattr(node.holder, key, None) is None:
                known = [v.get(k) for k in (key, other) for v in inner]
                found = [number for number in known if isinstance(number, int)]
                before.setdefault(key, None)
                # the root comes first: ids of its sub-configs are still the old ones
                new[key] = ("empty before", ids.get(found[0], found[0]) if found else 0)


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
