"""Shrink any transformers config and build its model: the same classes, tiny dimensions.

The numbers are chosen from the roles of the config's entries (`shrink_rules`, `shrink_layers`). A
trial forward follows; where construction or forward objects, the entries that the objection names
get their old values back, then whole roles do, one after the other, within a limit.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from .batch_objections import one_line
from .shrink_layers import plan_layers
from .shrink_rules import (
    Node,
    flat_ints,
    id_map,
    is_numbers,
    map_ints,
    role_of,
    small_head_dim,
    small_heads,
    spread,
    tree,
    vocab_map,
    width_map,
)

MAX_ATTEMPTS = 14
TIME_LIMIT = 20.0  # seconds, for all attempts together
_TOLERANCE = 5  # times max_parameters, where nothing smaller can be built


class ShrinkError(Exception):
    """No tiny model could be built; `reason` is one line and ends in the last exception."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Shrunk:
    """A tiny model: CPU, float32, random weights, in training mode.

    `steps` says what was changed and which objection was answered how; `batch` is the input that the
    trial forward accepted (None where no forward was found to work: the last step says why).
    """

    model: Any
    config: Any
    steps: list[str]
    attempts: int
    batch: Any = None


@dataclass(frozen=True)
class _Sizes:
    """The choices of one attempt."""

    base: int = 64
    min_depth: int = 2
    grid: int = 4
    keep_roles: frozenset[str] = frozenset()
    keep_keys: frozenset[str] = frozenset()
    overrides: tuple[tuple[str, Any], ...] = ()
    why: str = ""


@dataclass
class _Changes:
    by_role: dict[str, list[str]] = field(default_factory=dict)

    def note(self, role: str, path: str, key: str, old: Any, new: Any) -> None:
        where = f"{path}.{key}" if path else key
        self.by_role.setdefault(role, []).append(f"{where} {_short(old)} -> {_short(new)}")

    def steps(self) -> list[str]:
        return [f"{role}: {', '.join(entries)}" for role, entries in self.by_role.items()]


def shrink(
    config: Any,
    build: Callable[[Any], Any],
    *,
    max_parameters: int = 5_000_000,
    try_forward: bool = True,
    seed: int = 0,
) -> Shrunk:
    """Build a tiny model of the class that `build` constructs.

    Args:
        config: a `PretrainedConfig`, default or real; it is not changed.
        build: makes the `nn.Module` with random weights from the shrunken config.
        max_parameters: number of parameters that the tiny model may have.
        try_forward: run a training batch through it and answer objections; False only builds.
        seed: of the random weights.

    Raises:
        ShrinkError: no attempt could be built within `max_parameters`.
    """
    from .batch import BatchError, make_batch

    start = _Sizes(grid=_first_grid(tree(copy.deepcopy(config))))
    pending = [start]
    seen = [start]
    built: Shrunk | None = None
    last = "nothing tried"
    objections: list[str] = []
    attempts = 0
    smallest: tuple[int, Any] | None = None
    end = time.monotonic() + TIME_LIMIT
    while pending and attempts < MAX_ATTEMPTS and (attempts == 0 or time.monotonic() < end):
        sizes = pending.pop(0)
        attempts += 1
        small, changes = apply_sizes(config, sizes)
        steps = changes.steps() + ([sizes.why] if sizes.why else [])
        try:
            model = _build(small, build, max_parameters, seed, steps)
        except _TooBig as error:
            last = str(error)
            if smallest is None or error.parameters < smallest[0]:
                smallest = (error.parameters, small)
            more = _relax_too_big(sizes, error, small)
        except Exception as error:  # whatever construction says is material for the next attempt
            last = one_line(error)
            more = _repair(sizes, None, small, [last]) + _relax(sizes, last, changes)
        else:
            if not try_forward:
                return Shrunk(model, small, steps, attempts)
            try:
                batch = make_batch(model, seed=seed)
            except BatchError as error:
                batch, last, heard = None, error.reason, error.objections
            else:
                if not batch.left_out:
                    return Shrunk(model, small, steps, attempts, batch)
                last = f"without {', '.join(batch.left_out)}: {batch.notes[0]}"
                heard = batch.objections
            if built is None or (batch is not None and _fuller(batch, built.batch)):
                built = Shrunk(model, small, steps, attempts, batch)
            more = _repair(sizes, model, small, heard) + _relax(sizes, " ".join(heard), changes)
        objections.append(last)
        for option in more:
            if option not in seen:
                seen.append(option)
                pending.append(option)
        pending.sort(key=lambda option: not option.why.startswith(("named", "repaired")))
    if built is not None:
        built.attempts = attempts
        if built.batch is None:
            built.steps.append(f"no forward worked: {objections[0]}")
        return built
    raise ShrinkError(
        f"{type(config).__name__}: no tiny model in {attempts} attempts; last objection: {last}"
    )


def _fuller(batch: Any, other: Any) -> bool:
    return other is None or len(batch.left_out) < len(other.left_out)


def apply_sizes(config: Any, sizes: _Sizes) -> tuple[Any, _Changes]:
    """A shrunken deep copy of `config`, and what was changed."""
    small = copy.deepcopy(config)
    root = tree(small)
    changes = _Changes()
    ids = {} if "ids" in sizes.keep_roles else id_map(root)
    vocab = {} if "vocab" in sizes.keep_roles else vocab_map(root, len(ids))
    if not vocab:
        ids = {}
    widths = width_map(root, sizes.base)
    grids: list[tuple[int, int]] = []
    for node in list(root.walk()):
        before = dict(node.values)
        new: dict[str, tuple[str, Any]] = {}
        if "depth" not in sizes.keep_roles:
            plan = plan_layers(node, sizes.min_depth)
            new.update({key: ("layers", value) for key, value in plan.values.items()})
        for key, value in before.items():
            role = role_of(key, value)
            if role in sizes.keep_roles:
                continue
            current = new[key][1] if key in new else value
            result = _shrink_entry(key, current, role, widths, vocab, ids)
            if result != current:
                new[key] = (role, result)
        _fix_heads(node, before, new, sizes)
        _fix_experts(before, new)
        _fix_gaps(node, root, before, ids, new)
        _fix_feature_widths(before, new)
        grids += _fix_image(before, new, sizes)
        _fix_rope(node, before, new)
        for key, (role, value) in new.items():
            if key in sizes.keep_keys or value == before[key]:
                continue
            node.set(key, value)
            changes.note(role, node.path, key, before[key], value)
        _plain_settings(node, changes)
    _shrink_tokens(root, grids, changes)
    for where, value in sizes.overrides:
        node, key = find_entry(root, where)
        old = node.values.get(key)
        node.set(key, value)
        changes.note("repaired", node.path, key, old, value)
    return small, changes


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
        return map_ints(value, lambda n: min(n, cap))
    if role == "window":
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
    node: Node, before: dict[str, Any], new: dict[str, tuple[str, Any]], sizes: _Sizes
) -> None:
    """Key/value groups stay fewer than heads; head_dim follows `heads * head_dim == k * width`."""

    def now(key: str) -> Any:
        return new[key][1] if key in new and key not in sizes.keep_keys else before[key]

    heads = {
        k: v for k, v in before.items() if isinstance(v, int) and role_of(k, v) in ("heads", "kv_heads")
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
        if key.startswith(("qk_", "v_head")):
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
        for a, b in zip(stem.split("_"), other.split("_")):
            if a != b:
                break
            common += 1
        return common, name in ("num_attention_heads", "num_heads", "n_head", "n_heads")

    return max(queries, key=likeness)


def _fix_experts(before: dict[str, Any], new: dict[str, tuple[str, Any]]) -> None:
    groups = [k for k, v in before.items() if role_of(k, v) == "expert_groups"]
    has_experts = any(role_of(k, v) == "experts" for k, v in before.items())
    for key, value in before.items():
        role = role_of(key, value)
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if role == "topk" and not has_experts:
            new.pop(key, None)  # the sampling setting of the same name
        if role == "expert_groups" and value > 1:
            new[key] = ("experts", 2)
        if role == "expert_topgroups" and groups:
            old = before[groups[0]]
            new[key] = ("experts", 1 if isinstance(old, int) and value < old else min(value, 2))


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
    if children & {"vision_config", "vision"} and "text_config" in children:
        names = [f"{kind}_token_{end}" for kind in ("image", "video") for end in ("id", "index")]
        for number, key in enumerate(names):
            if key in before and before[key] is None:
                new[key] = ("empty before", 58 + number)
    if node is not root:
        return
    if bool(getattr(node.holder, "is_encoder_decoder", False)) or {"encoder", "decoder"} <= children:
        inner = [n.values for n in node.walk()]
        for key, other in (("pad_token_id", "eos_token_id"), ("decoder_start_token_id", "bos_token_id")):
            if getattr(node.holder, key, None) is None:
                found = [v.get(k) for k in (key, other) for v in inner if isinstance(v.get(k), int)]
                before.setdefault(key, None)
                # the root comes first: ids of its sub-configs are still the old ones
                new[key] = ("empty before", ids.get(found[0], found[0]) if found else 0)


def _first_grid(root: Node) -> int:
    """Patches per side that every merge factor of the tree divides."""
    need = 1
    for node in root.walk():
        stages = [len(v) for k, v in node.values.items() if role_of(k, v) == "depths"]
        if stages and "patch_size" in node.values:
            need = max(need, 2 ** max(stages))
        for key, value in node.values.items():
            if role_of(key, value) == "merge" and isinstance(value, int) and 1 < value <= 8:
                need = max(need, 2 * value)
    return next((g for g in (4, 6, 8, 12, 16) if g >= need and g % need == 0), 16)


def _fix_feature_widths(before: dict[str, Any], new: dict[str, tuple[str, Any]]) -> None:
    """A width that joins the outputs of listed layers follows the length of the list."""
    after = {**before, **{key: value for key, (_, value) in new.items()}}
    widths = [k for k, v in before.items() if isinstance(v, int) and role_of(k, v) == "width" and v > 0]
    for listed, numbers in before.items():
        if not is_numbers(numbers) or role_of(listed, numbers) != "layer_index":
            continue
        for extra in (0, 1):
            count = len(numbers) + extra
            for wide in widths:
                narrow = [k for k in widths if before[k] * count == before[wide] and count > 1]
                if narrow and len(after[listed]) != len(numbers):
                    new[wide] = ("width", after[narrow[0]] * (len(after[listed]) + extra))


def _fix_image(
    before: dict[str, Any], new: dict[str, tuple[str, Any]], sizes: _Sizes
) -> list[tuple[int, int]]:
    """Fewer patches: `grid` per side. Returns (patches per side before, after) of each image size."""
    if "image" in sizes.keep_roles:
        return []
    grids: list[tuple[int, int]] = []
    patches = [
        n for k, v in before.items() if role_of(k, v) == "patch" for n in list(flat_ints(v))[-1:]
    ]
    if not patches:
        return []
    patch = max(patches)
    for key, value in before.items():
        if role_of(key, value) != "image" or not list(flat_ints(value)):
            continue
        side = max(flat_ints(value))
        if patch <= 0 or side // patch <= sizes.grid:
            continue
        new[key] = ("image", map_ints(value, lambda n: sizes.grid * patch if n > patch else n))
        grids.append((side // patch, sizes.grid))
    return grids


def _shrink_tokens(root: Node, grids: list[tuple[int, int]], changes: _Changes) -> None:
    """Counts of patches and of image tokens, anywhere in the tree, follow the patches per side."""
    for node in root.walk():
        for key, count in list(node.values.items()):
            if role_of(key, count) != "tokens" or not isinstance(count, int):
                continue
            found = [_token_count(count, before, after) for before, after in grids]
            small = min(count, 8) if "query" in key else next((n for n in found if n), 0)
            if not small and grids and count > max(before for before, _ in grids) ** 2:
                # more tokens than patches: a default that no image size can satisfy
                small = grids[0][1] ** 2 if "position" not in key else 0
            if small and small != count:
                node.set(key, small)
                changes.note("image", node.path, key, count, small)


def _token_count(count: int, grid: int, small: int) -> int:
    """The number of tokens for `small` patches per side, where `count` belonged to `grid`."""
    for extra in (0, 1):
        side = round((count - extra) ** 0.5) if count > extra else 0
        if side and side * side == count - extra and grid % side == 0:
            return max(1, small // (grid // side)) ** 2 + extra
    return 0


def _fix_rope(node: Node, before: dict[str, Any], new: dict[str, tuple[str, Any]]) -> None:
    """Rotary parts follow the head dimension: `rotary_dim`, sections, long-context factors."""

    def head_dim(values: dict[str, Any]) -> int:
        for key in ("qk_rope_head_dim", "head_dim", "kv_channels", "attention_head_dim", "head_size"):
            if isinstance(values.get(key), int) and values[key]:
                return int(values[key])
        width = next((values[k] for k in ("hidden_size", "n_embd", "d_model") if values.get(k)), 0)
        heads = next(
            (values[k] for k in ("num_attention_heads", "n_head", "num_heads") if values.get(k)), 0
        )
        ok = isinstance(width, int) and isinstance(heads, int) and heads > 0
        return width // heads if ok else 0

    after = {**before, **{key: value for key, (_, value) in new.items()}}
    old, small = head_dim(before), head_dim(after)
    if not old or not small or old == small:
        return
    for key, value in before.items():
        if role_of(key, value) == "rotary" and isinstance(value, int) and value:
            new[key] = ("rope", max(2, value * small // old // 2 * 2))
        elif isinstance(value, dict) and "rope" in key:
            new[key] = ("rope", _scale_rope(value, old, small))
        elif key.endswith("rope_section") and is_numbers(value):
            new[key] = ("rope", type(value)(spread(sum(value) * small // old, list(value))))


def _scale_rope(rope: dict[str, Any], old: int, small: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in rope.items():
        if isinstance(value, dict):
            result[key] = _scale_rope(value, old, small)
        elif key.endswith("section") and is_numbers(value):
            result[key] = type(value)(spread(sum(value) * small // old, list(value)))
        elif key in ("long_factor", "short_factor") and isinstance(value, (list, tuple)):
            result[key] = type(value)(value[: max(1, len(value) * small // old)])
        elif key == "original_max_position_embeddings" and isinstance(value, int):
            result[key] = min(value, 64)
        else:
            result[key] = value
    return result


def _plain_settings(node: Node, changes: _Changes) -> None:
    """float32, and no quantization: what the tiny model is quantized with is the caller's matter."""
    for key in ("dtype", "torch_dtype"):
        if node.values.get(key) is not None:
            node.set(key, "float32" if isinstance(node.values[key], str) else _float32())
    if not isinstance(node.holder, dict) and "quantization_config" in vars(node.holder):
        del node.holder.quantization_config
        changes.note("quantization", node.path, "quantization_config", "set", "removed")


def _float32() -> Any:
    import torch

    return torch.float32


# --- building --------------------------------------------------------------------------------------


class _TooBig(Exception):
    def __init__(self, parameters: int, largest: str, shape: tuple[int, ...]) -> None:
        self.parameters = parameters
        super().__init__(f"{parameters} parameters, the largest is {largest} {list(shape)}")
        self.shape = shape


def _build(
    config: Any, build: Callable[[Any], Any], max_parameters: int, seed: int, steps: list[str]
) -> Any:
    import torch

    with _seeded(seed):
        try:
            with torch.device("meta"):
                _check_size(build(copy.deepcopy(config)), max_parameters)
        except _TooBig:
            raise
        except Exception as error:  # init code that needs real numbers: say so and build it at once
            steps.append(f"size not checked beforehand: {one_line(error)}")
    with _seeded(seed):
        model = build(config)
        _check_size(model, max_parameters)
        model.float()
        repaired = sane_weights(model)
    if repaired:
        steps.append(f"initialised {len(repaired)} parameters that the class leaves as they are: "
                     f"{', '.join(repaired[:3])}{' ...' if len(repaired) > 3 else ''}")
    model.train()
    return model


def _check_size(model: Any, max_parameters: int) -> None:
    total = sum(p.numel() for p in model.parameters())
    if total > max_parameters:
        name, parameter = max(model.named_parameters(), key=lambda item: int(item[1].numel()))
        raise _TooBig(total, name, tuple(parameter.shape))


def sane_weights(model: Any) -> list[str]:
    """Give parameters with garbage (not finite, or beyond 100) small normal values; their names."""
    import torch

    repaired = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.device.type != "meta":
                worst = parameter.abs().max() if parameter.numel() else parameter.new_zeros(())
                # torch.empty may also hand out memory full of denormal numbers
                if not torch.isfinite(worst) or worst > 100 or 0 < worst < 1e-20:
                    parameter.normal_(0.0, 0.02)
                    repaired.append(name)
    return repaired


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from `seed`; the caller's generator is as before afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# --- answering objections --------------------------------------------------------------------------

_ROLES_TO_RESTORE = (
    "image",
    "rotary",
    "head_dim",
    "channels",
    "kv_heads",
    "heads",
    "positions",
    "state",
    "ids",
    "depth",
    "window",
)


def _relax(sizes: _Sizes, objection: str, changes: _Changes) -> list[_Sizes]:
    """What to try next: entries that the objection names, then a larger image, then role by role."""
    options = []
    changed = {
        entry.split(" ")[0].rsplit(".", 1)[-1] for items in changes.by_role.values() for entry in items
    }
    named = frozenset(key for key in changed if re.search(rf"\b{re.escape(key)}\b", objection))
    named -= {"vocab_size", "hidden_size"}
    if named - sizes.keep_keys:
        why = f"named in the objection, kept: {', '.join(sorted(named))} ({objection})"
        options.append(replace(sizes, keep_keys=sizes.keep_keys | named, why=why))
    if sizes.why:  # one role at a time, from the first attempt only: failures stay independent
        return options
    for grid in (8, 12, 16):
        if grid > sizes.grid and any("image" in k for k in changed):
            options.append(replace(sizes, grid=grid, why=f"{grid} patches per side ({objection})"))
            break
    options.append(replace(sizes, min_depth=4, why=f"four layers ({objection})"))
    for role in _ROLES_TO_RESTORE:
        if role in changes.by_role or (role == "depth" and "layers" in changes.by_role):
            why = f"{role} left as they were ({objection})"
            options.append(replace(sizes, keep_roles=frozenset({role}), why=why))
    return options


def _relax_too_big(sizes: _Sizes, error: _TooBig, config: Any) -> list[_Sizes]:
    """Smaller widths; then the entries whose numbers stand in the shape of the largest parameter."""
    options = []
    if sizes.base > 32:
        options.append(replace(sizes, base=32, why=f"smaller widths ({error})"))
    overrides = dict(sizes.overrides)
    for node in tree(config).walk():
        for key, value in node.values.items():
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            role = role_of(key, value)
            if role in ("vocab", "ids", "heads", "kv_heads", "depth") or value < 16:
                continue
            # a width itself or, where each stage doubles it, the first of them
            factors = [dim // value for dim in error.shape if dim > 256 and dim % value == 0]
            if role == "channels" or value >= 128:
                if any(f <= 64 and (value >= 128 or f & (f - 1) == 0) for f in factors):
                    overrides[node.where(key)] = max(8, value // 8 // 8 * 8)
    entries = tuple(sorted(overrides.items(), key=lambda item: item[0]))
    if entries != sizes.overrides:
        options.append(replace(sizes, base=32, overrides=entries, why=f"repaired: {error}"))
    return options


def _repair(sizes: _Sizes, model: Any, config: Any, objections: list[str]) -> list[_Sizes]:
    """Entries that do not fit each other, read from the objections and from the model."""
    root = tree(config)
    overrides: dict[str, Any] = {}
    for text in objections:
        overrides.update(_rope_sections(root, text))
        overrides.update(_missing_entries(root, text))
        overrides.update(_empty_entries(root, text))
        overrides.update(_asked_flags(root, text))
        if model is not None and re.search(r"features.*do not match|same number of (elements|tokens)|shape mismatch", text):
            overrides.update(_tie_towers(root, model))
    known = dict(sizes.overrides)
    fresh = {where: value for where, value in overrides.items() if known.get(where) != value}
    if not fresh:
        return []
    entries = tuple(sorted({**known, **fresh}.items(), key=lambda item: item[0]))
    return [replace(sizes, overrides=entries, why=f"repaired: {'; '.join(objections)[:300]}")]


def _rope_sections(root: Node, text: str) -> dict[str, Any]:
    """Sections that stand in the code, not in the config, written into it at the right sum."""
    match = re.search(r"sum exactly to (\d+) .*?split_sizes=\[([\d, ]+)\]", text)
    if not match:
        return {}
    total, parts = int(match[1]), [int(n) for n in match[2].split(",")]
    found: dict[str, Any] = {}
    if len(parts) > 3 and parts[: len(parts) // 2] == parts[len(parts) // 2 :]:
        parts, total = parts[: len(parts) // 2], total // 2  # the code doubles the list
    for node in root.walk():
        if re.search(r"vision|visual|audio", node.path) or "num_attention_heads" not in node.values:
            continue
        for key in ("rope_parameters", "rope_scaling"):
            rope = node.values.get(key)
            if isinstance(rope, dict) or (rope is None and key == "rope_parameters"):
                found[node.where(key)] = {**(rope or {}), "mrope_section": spread(total, parts)}
    return found


def _missing_entries(root: Node, text: str) -> dict[str, Any]:
    """`'XConfig' object has no attribute 'pad_token_id'`: taken from a sub-config, or 0."""
    found: dict[str, Any] = {}
    for class_name, key in re.findall(r"'(\w+)' object has no attribute '(\w+)'", text):
        for node in root.walk():
            if type(node.holder).__name__ == class_name and key not in node.values:
                known = [n.values[key] for n in root.walk() if n.values.get(key) is not None]
                if key == "rope_theta":
                    known.append(10000.0)
                if known or role_of(key, 0) == "ids":
                    found[node.where(key)] = known[0] if known else 0
    return found


def _empty_entries(root: Node, text: str) -> dict[str, Any]:
    """Entries left None that the code computes with, and rotary settings that are not there."""
    found: dict[str, Any] = {}
    layer_type = re.search(r"KeyError: '(\w+_attention)'", text)
    rope_gap = re.search(r"KeyError: '(rope_type|rope_theta|full_attention)'", text)
    default = {"rope_type": "default", "rope_theta": 10000.0}
    for node in root.walk():
        values = node.values
        if not all(isinstance(values.get(k), int) for k in ("hidden_size", "num_attention_heads")):
            continue
        if re.search(r"NoneType|positional argument|not be None", text):
            for key, value in values.items():
                if value is None:
                    filling = _filling(key, values, text)
                    if filling is not None:
                        found[node.where(key)] = filling
        if not values.get("rope_parameters") and "rope_parameters" in values:
            if layer_type:
                kinds = sorted(set(values.get("layer_types") or [layer_type[1]]))
                found[node.where("rope_parameters")] = {kind: dict(default) for kind in kinds}
            elif rope_gap or "NoneType" in text:
                found[node.where("rope_parameters")] = dict(default)
    return found


def _filling(key: str, values: dict[str, Any], text: str) -> Any:
    """A small value for an entry that is None, by its role; None where no guess is sound."""
    heads, layers = values["num_attention_heads"], values.get("num_hidden_layers", 0)
    role = role_of(key, 0)
    if role == "head_dim":
        return values["hidden_size"] // heads
    if role in ("heads", "kv_heads"):
        return heads
    if role == "experts":
        return 4
    if role == "topk":
        return 2
    if "shared_expert" in key:
        return 1
    if role == "width" and "intermediate" in key:
        return values.get("intermediate_size")
    if key == "layer_types":
        return ["full_attention"] * layers
    if key == "mlp_layer_types":
        return ["dense", *["sparse"] * (layers - 1)]
    if key.startswith("clip") and "clamp" in text:
        return 8.0
    return None


def _asked_flags(root: Node, text: str) -> dict[str, Any]:
    """Switches that the objection asks for: "make sure that `is_decoder=True`"."""
    found: dict[str, Any] = {}
    for key, asked in re.findall(r"\b(\w+)\s?=\s?(True|False)\b", text):
        for node in root.walk():
            value = node.values.get(key)
            if isinstance(value, bool) and value is not (asked == "True"):
                found[node.where(key)] = asked == "True"
    return found


def _tie_towers(root: Node, model: Any) -> dict[str, Any]:
    """The width that a tower gives out, set to the width of the text embeddings."""
    from .batch_objections import feature_width

    try:
        text = int(model.get_input_embeddings().weight.shape[-1])
    except (AttributeError, NotImplementedError, TypeError):
        return {}
    for kind, words in (("image", r"vision|visual|image"), ("audio", r"audio|speech")):
        width = feature_width(model, kind)
        if not width or width == text:
            continue
        for node in root.walk():
            if not re.search(words, node.path):
                continue
            keys = [k for k, v in node.values.items() if v == width and role_of(k, v) == "width"]
            out = [k for k in keys if re.search(r"out|proj", k)] or keys
            if out:
                return {f"{node.path}.{key}": text for key in out}
    return {}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
