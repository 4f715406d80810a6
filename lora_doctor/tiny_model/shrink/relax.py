"""What to try next where an error does not say which entries do not fit: keep more, or less."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_doctor.tiny_model.config_roles import role_of, tree
from lora_doctor.tiny_model.model_error import ModelError
from lora_doctor.tiny_model.shrink.build import TooBig
from lora_doctor.tiny_model.shrink.sizes import Changes, Sizes

#: Roles to leave as they were, one after the other; what is most often the matter comes first.
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

#: Roles of entries that are not widths, whatever their values.
_NO_WIDTHS = ("vocab", "ids", "heads", "kv_heads", "depth")


@dataclass(frozen=True)
class _Objection:
    """What the errors say, and the sentences about them for people."""

    words: str
    told: str


def relax(sizes: Sizes, errors: Sequence[ModelError], changes: Changes) -> list[Sizes]:
    """Entries that the errors name as they were; other sizes; then role by role as it was.

    Args:
        changes: what `sizes` changed in the config.
    """
    error = _Objection(" ".join(one.words for one in errors), " ".join(one.told for one in errors))
    changed = {
        change.key.rpartition(".")[2] for items in changes.by_role.values() for change in items
    }
    named = list(_named_entries(sizes, error, changed))
    # One role at a time, from the first attempt only: failures stay independent. Where that one
    # was too big, the one with smaller widths is the first.
    if sizes.origin not in ("start", "smaller"):
        return named
    guesses = [*_other_sizes(sizes, error, changes, changed), *_roles(sizes, error, changes)]
    return [
        *_widths_of_thirds(sizes, error),
        *named,
        *(replace(option, origin="guess") for option in guesses),
    ]


def _named_entries(sizes: Sizes, error: _Objection, changed: set[str]) -> Iterator[Sizes]:
    named = frozenset(key for key in changed if re.search(rf"\b{re.escape(key)}\b", error.words))
    named -= {"vocab_size", "hidden_size"}
    if named - sizes.keep_keys:
        why = f"named in the objection, kept: {', '.join(sorted(named))} ({error.told})"
        yield replace(sizes, keep_keys=sizes.keep_keys | named, origin="called for", why=why)


def _widths_of_thirds(sizes: Sizes, error: _Objection) -> Iterator[Sizes]:
    """Six parts of one width (LiLT's boxes): numbers with a three in them."""
    parts = re.search(r"cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)", error.words)
    if sizes.base > 32 and parts and int(parts[1]) % 3 == 0 < int(parts[2]) % 3:
        why = f"repaired: widths of thirds ({error.told})"
        yield replace(sizes, base=96, origin="called for", why=why)


def _other_sizes(
    sizes: Sizes, error: _Objection, changes: Changes, changed: set[str]
) -> Iterator[Sizes]:
    if changes.multiples:
        why = f"numbers of layers in proportion ({error.told})"
        yield replace(sizes, in_proportion=True, why=why)
    larger = [grid for grid in (8, 12, 16) if grid > sizes.grid]
    if larger and any("image" in key for key in changed):
        yield replace(sizes, grid=larger[0], why=f"{larger[0]} patches per side ({error.told})")
    if sizes.base > 32 and re.search(r"shape|[Ss]ize|divisible|multiple of", error.words):
        # widths that the code rounds up or divides: numbers with more twos in them
        yield replace(sizes, base=128, why=f"larger widths ({error.told})")
    yield replace(sizes, min_depth=4, why=f"four layers ({error.told})")


def _roles(sizes: Sizes, error: _Objection, changes: Changes) -> Iterator[Sizes]:
    for role in _ROLES_TO_RESTORE:
        if role in changes.by_role or (role == "depth" and "layers" in changes.by_role):
            kept = {role, "kv_heads"} if role == "heads" else {role}  # groups of as many heads
            why = f"{role} left as they were ({error.told})"
            yield replace(sizes, keep_roles=frozenset(kept), why=why)


def relax_too_big(sizes: Sizes, error: TooBig, config: Any) -> list[Sizes]:
    """Smaller widths; then an eighth of the entries whose values are in the shape of the largest
    parameter. `config`: the small one."""
    if sizes.base > 32:
        return [replace(sizes, base=32, origin="smaller", why=f"smaller widths ({error})")]
    overrides = dict(sizes.overrides)
    for node in tree(config).walk():
        for key, value in node.values.items():
            if _is_in_shape(key, value, error.shape):
                overrides[node.where(key)] = max(4, value // 8 // 4 * 4)
    if overrides == dict(sizes.overrides):
        return []
    return [sizes.with_overrides(overrides, f"repaired: {error}")]


def _is_in_shape(key: str, value: Any, shape: tuple[int, ...]) -> bool:
    """Whether an entry is the width or, where each stage doubles it, the first width of a
    parameter of this shape."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    role = role_of(key, value)
    if role in _NO_WIDTHS or value < 4 or not (role == "channels" or value >= 128):
        return False
    factors = [dim // value for dim in shape if dim > 256 and dim % value == 0]
    return any(f <= 64 and (value >= 128 or f & (f - 1) == 0) for f in factors)
