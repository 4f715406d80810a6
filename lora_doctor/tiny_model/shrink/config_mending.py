"""A config that its own class cannot be built from, completed as a user would complete it.

What is empty is read from the code that raised (`config_gaps`); what to write there from the name's
role, from the docstring of the config class, or from the type that it declares. The result is made
by the config's own class again, so that entries which follow from others do follow, and so that its
validation has its say.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
from dataclasses import dataclass
from typing import Any

from lora_doctor.text import error_summary
from lora_doctor.tiny_model.config_roles import Node, flat_ints, role_of, tree
from lora_doctor.tiny_model.shrink.apply import find_entry
from lora_doctor.tiny_model.shrink.config_gaps import Gap, gaps
from lora_doctor.tiny_model.shrink.empty_entries import (
    DEFAULT_ROPE,
    filling,
    has_attention,
    mrope_section,
)
from lora_doctor.tiny_model.shrink.repair import repair
from lora_doctor.tiny_model.shrink.sizes import Sizes
from lora_doctor.tiny_model.shrink.timm_towers import tower_with

_ROUNDS = 4  # of errors by the config's own validation
# Ids below those that shrinking moves, so that they are the same in the small config.
_FREE_IDS = range(40, 58)


@dataclass(frozen=True)
class Mended:
    """A config, and what was set in it, as ``entry = value``."""

    config: Any
    changes: tuple[str, ...]


def mend(config: Any, error: BaseException, running: bool = False) -> Mended | None:
    """The config with the entries set that an exception of its model code calls for.

    ``config`` is not changed. ``None`` when the exception calls for none that can be filled, or
    what it calls for is there already. ``running``: forward raised it, on inputs that may be at
    fault as well; only entries that the failing statement itself computes with count then.
    """
    overrides = _while_running(config, error) if running else _wanted(config, error)
    overrides |= _as_saved(config, error) | _empty_factors(config, error)
    for _ in range(_ROUNDS):
        if not overrides:
            return None
        better = copy.deepcopy(config)
        root = tree(better)
        for where, value in overrides.items():
            node, key = find_entry(root, where)
            node.set(key, value)
        try:
            better = _made_again(config, better)
        except Exception as refused:  # noqa: BLE001 - the message of its validation is read below
            message = error_summary(refused)
            more = {
                **_missing_fields(root, message),
                **_required_values(root, message),
                **_allowed_values(root, message),
            }
            if all(overrides.get(where) == value for where, value in more.items()):
                return None
            overrides |= more
            continue
        return Mended(better, tuple(f"{where} = {value}" for where, value in overrides.items()))
    return None


def _wanted(config: Any, error: BaseException) -> dict[str, Any]:
    """Entries to set, by their paths."""
    root = tree(copy.deepcopy(config))
    message = error_summary(error)
    empty = gaps(error)
    named = {gap.key for gap in empty}
    found: dict[str, Any] = {}
    for option in repair(Sizes(), None, copy.deepcopy(config), [message])[:1]:
        for where, value in option.overrides:
            key = where.rpartition(".")[2]
            if key in message or key in named:
                found[where] = value
    for where, value in _filled(root, empty, message).items():
        found.setdefault(where, value)
    undefined = re.findall(r"\bdefine `(\w+)`", message)
    found |= _filled(root, [Gap("", name) for name in undefined], message)
    found |= _divisible_heads(root, message)
    found |= _required_values(root, message)
    found |= _required_lists(root, str(error))
    now = {node.where(key): value for node in root.walk() for key, value in node.values.items()}
    return {where: value for where, value in found.items() if now.get(where) != value}


def _as_saved(config: Any, error: BaseException) -> dict[str, Any]:
    """Lists where a class has tuples for defaults and its model code adds lists to them: a config
    that was saved and loaded has lists."""
    if not re.search(r"can only concatenate (list|tuple) \(not .(tuple|list).\)", str(error)):
        return {}
    return {
        node.where(key): list(value)
        for node in tree(copy.deepcopy(config)).walk()
        for key, value in node.values.items()
        if isinstance(value, tuple)
    }


def _empty_factors(config: Any, error: BaseException) -> dict[str, Any]:
    """One factor of 1 where a default lists none and nothing is left to join (LW-DETR's
    `projector_scale_factors`, one for each scale of the image)."""
    if "expected a non-empty list of Tensors" not in str(error):
        return {}
    return {
        node.where(key): [1.0]
        for node in tree(copy.deepcopy(config)).walk()
        for key, value in node.values.items()
        if isinstance(value, (list, tuple)) and not value and re.search(r"_factors$", key)
    }


def _while_running(config: Any, error: BaseException) -> dict[str, Any]:
    """Entries to set so that the failing statement of a forward has what it computes with."""
    message = error_summary(error)
    if "None" not in message:
        return {}
    return _filled(tree(copy.deepcopy(config)), gaps(error, nearby=False), message)


def _filled(root: Node, empty: list[Gap], message: str) -> dict[str, Any]:
    """Values for the entries that hold nothing, by their paths."""
    found: dict[str, Any] = {}
    for gap in empty:
        for node in root.walk():
            if gap.config_class not in ("", type(node.holder).__name__):
                continue
            if gap.key in node.values and node.values[gap.key] is None:
                tower = tower_with(node, gap.key, gap.looked_up)
                found |= {node.where(key): entry for key, entry in tower.items()}
                value = None if tower else _value_for(node, gap, message)
                if value is not None:
                    found[node.where(gap.key)] = value
    return found


def _made_again(before: Any, better: Any) -> Any:
    """`better` through the constructor of its class, where `before` goes through it, too.

    Raises:
        Exception: what the class says against it.
    """
    cls = type(before)
    try:
        cls.from_dict(before.to_dict())
    except Exception:  # noqa: BLE001 - it does not take its own entries: nothing is learnt this way
        return better
    # What the constructor derives is not handed to it, or it would stay as empty as it was.
    takes = inspect.signature(cls.__init__).parameters
    entries = {
        key: value
        for key, value in better.to_dict().items()
        if not _holds_nothing(value) or key in takes or key not in vars(better)
    }
    return cls.from_dict(entries)


def _holds_nothing(value: Any) -> bool:
    """None, an empty list, or their number: what is derived from an entry that was empty."""
    return value is None or (not isinstance(value, (bool, str, dict)) and not value)


def _value_for(node: Node, gap: Gap, message: str) -> Any:
    """What to write into an empty entry; None where no guess is sound."""
    values = node.values
    parts: Any = getattr(type(node.holder), "sub_configs", None)
    part: Any = (parts or {}).get(gap.key)
    if hasattr(part, "model_type") and part.model_type:  # `AutoConfig` could be anything
        return part()
    if has_attention(values):
        found = filling(gap.key, values, message)
        if found is not None:
            return found
    if "rope" in gap.key:
        return {**DEFAULT_ROPE, **mrope_section(values, message)}
    example, kind = _documented(node.holder, gap.key)
    if example is not None:
        return example
    if role_of(gap.key, 0) == "width" and isinstance(values.get("hidden_size"), int):
        return values["hidden_size"]
    if "dict" in kind:
        ids = [n for v in values.values() for n in flat_ints(v)]
        free = [number for number in _FREE_IDS if number not in ids]
        return dict(zip(gap.looked_up, free, strict=False)) or None
    if "list" in kind or "tuple" in kind:
        return _list_for(node, gap.key)
    # Equal numbers: whatever must divide another does.
    return 4 if kind == "int" else 1.0 if kind == "float" else None


def _list_for(node: Node, key: str) -> list[Any]:
    """A list as the docstring has it: one entry for each label (thresholds, an order), widths of
    layers that follow each other (two of them: some unpack a pair); else an empty one."""
    entry = _entry_text(node.holder, key)
    labels = getattr(node.holder, "num_labels", None)
    each = re.search(r"(for|of|per) (each |every |a )?(label|class)\b", entry)
    if each and isinstance(labels, int):
        return [0.5] * labels if "float" in entry.partition(")")[0] else list(range(labels))
    if role_of(key, 0) in ("channels", "width"):
        return [64, 64]
    return []


def _entry_text(holder: Any, key: str) -> str:
    """What the docstring of a config's class says about one entry; empty where nothing."""
    text = inspect.getdoc(type(holder)) or ""
    entry = re.search(rf"^\s*{re.escape(key)} \(`?.*?(?=^\s*\w+ \(`|\Z)", text, re.M | re.S)
    return entry[0] if entry else ""


def _documented(holder: Any, key: str) -> tuple[Any, str]:
    """An example of an entry's value from its class's docstring ("e.g. `"1/4"`"), and its type."""
    kind = ""
    for cls in type(holder).__mro__:
        declared = vars(cls).get("__annotations__", {}).get(key)
        if declared is not None:
            kind = getattr(declared, "__name__", None) or str(declared)
            kind = str(declared) if "|" in str(declared) or "[" in str(declared) else kind
            break
    entry = _entry_text(holder, key)
    named = re.match(r"\s*\w+ \(`?(\w+)", entry)
    if named is None:
        return None, _plain_kind(kind)
    kind = kind or named[1]
    for found in re.findall(r"(?:e\.g\.|such as|for example),?:? `([^`]+)`", entry, re.I):
        try:
            return ast.literal_eval(found), _plain_kind(kind)
        except (ValueError, SyntaxError):
            continue
    return None, _plain_kind(kind)


def _plain_kind(declared: str) -> str:
    """`int`, `float`, `dict`, `list` or what else a declared type like `int | None` begins with."""
    return re.split(r"[\[| ]", declared.lower().removeprefix("typing.").strip())[0]


def _divisible_heads(root: Node, text: str) -> dict[str, Any]:
    """Another number of heads, where a class raises because it does not divide the width."""
    if not re.search(r"divisible|multiple of", text):
        return {}
    numbers = {int(n) for n in re.findall(r"\b\d+\b", text)}
    found: dict[str, Any] = {}
    for node in root.walk():
        widths = [
            v
            for k, v in node.values.items()
            if role_of(k, v) == "width" and isinstance(v, int) and v in numbers
        ]
        for key, heads in node.values.items():
            known = isinstance(heads, int) and role_of(key, heads) == "heads"
            if known and heads in numbers and widths:
                whole = [n for n in range(2, 2 * heads) if all(w % (2 * n) == 0 for w in widths)]
                if widths[0] % heads and whole:
                    found[node.where(key)] = min(
                        whole, key=lambda n: (abs(n - heads), n & (n - 1) != 0)
                    )
    return found


def _missing_fields(root: Node, text: str) -> dict[str, Any]:
    """Entries that a validation misses: "is missing required fields: ['indexer_head_dim']"."""
    missing = re.search(r"missing.*?(?:fields|entries|values|arguments)\b(.*)", text)
    names = re.findall(r"\w+", missing[1]) if missing else []
    return _filled(root, [Gap("", name) for name in names], text)


def _allowed_values(root: Node, text: str) -> dict[str, Any]:
    """Words that a validation allows: "layer_types must be a list strings in [`mamba`
    `attention`]"; a list gets all of them in turn."""
    allowed = re.search(r"`?(\w+)`?(?: \w+)? must be [^.]*?(?:in|of) *[\[({](.*?)[\])}]", text)
    if allowed is None:
        return {}
    words = re.findall(r"[`'\"](\w+)[`'\"]", allowed[2])
    found: dict[str, Any] = {}
    for node in root.walk():
        value = node.values.get(allowed[1]) if words else None
        if isinstance(value, list):
            found[node.where(allowed[1])] = [words[i % len(words)] for i in range(len(value))]
        elif isinstance(value, str):
            found[node.where(allowed[1])] = words[0]
    return found


def _required_values(root: Node, text: str) -> dict[str, Any]:
    """Numbers that a validation requires by name: "requires indexer_kv_heads=1"."""
    required = re.findall(r"(?:requires?|must be|expects?) `?(\w+)`? ?={1,2} ?(\d+)\b", text)
    return {
        node.where(key): int(number)
        for key, number in required
        for node in root.walk()
        if key in node.values
    }


def _required_lists(root: Node, text: str) -> dict[str, Any]:
    """Lists that a class requires, with an example: "requires config.out_indices to be a list of 4
    integers, [...]. One can use [3, 5, 7, 11]"."""
    required = re.search(r"\b(\w+)`? to be a list .*?\buse `?(\w+=)?(\[[\d, ]+\])", text, re.S)
    if required is None or not hasattr(root.holder, required[1]):
        return {}
    return {root.where(required[1]): ast.literal_eval(required[3])}
