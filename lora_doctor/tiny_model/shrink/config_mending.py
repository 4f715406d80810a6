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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_doctor.tiny_model.config_roles import Node, role_of, tree
from lora_doctor.tiny_model.model_error import ModelError
from lora_doctor.tiny_model.shrink.apply import find_entry
from lora_doctor.tiny_model.shrink.config_gaps import Gap, gaps
from lora_doctor.tiny_model.shrink.entry_values import filled
from lora_doctor.tiny_model.shrink.repair import repair
from lora_doctor.tiny_model.shrink.sizes import Sizes

_ROUNDS = 4  # of errors by the config's own validation


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
        root = _with_entries(config, overrides)
        try:
            better = _made_again(config, root.holder)
        except Exception as refused:  # noqa: BLE001 - the message of its validation is read below
            more = _required_by_validation(root, ModelError.of(refused).words)
            if all(overrides.get(where) == value for where, value in more.items()):
                return None
            overrides |= more
            continue
        return Mended(better, tuple(f"{where} = {value}" for where, value in overrides.items()))
    return None


def _wanted(config: Any, error: BaseException) -> dict[str, Any]:
    """Entries to set, by their paths."""
    root = tree(copy.deepcopy(config))
    objection = ModelError.of(error)
    message = objection.words
    empty = gaps(error)
    named = {gap.key for gap in empty}
    found: dict[str, Any] = {}
    for option in repair(Sizes(), None, copy.deepcopy(config), [objection])[:1]:
        for where, value in option.overrides:
            key = where.rpartition(".")[2]
            if key in message or key in named:
                found[where] = value
    for where, value in filled(root, empty, message).items():
        found.setdefault(where, value)
    undefined = re.findall(r"\bdefine `(\w+)`", message)
    found |= filled(root, [Gap("", name) for name in undefined], message)
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
    message = ModelError.of(error).words
    if "None" not in message:
        return {}
    return filled(tree(copy.deepcopy(config)), gaps(error, nearby=False), message)


def _with_entries(config: Any, entries: Mapping[str, Any]) -> Node:
    """The tree of a copy of the config with these entries set, by their paths."""
    root = tree(copy.deepcopy(config))
    for where, value in entries.items():
        node, key = find_entry(root, where)
        node.set(key, value)
    return root


def _required_by_validation(root: Node, message: str) -> dict[str, Any]:
    return {
        **_missing_fields(root, message),
        **_required_values(root, message),
        **_allowed_values(root, message),
    }


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
    return filled(root, [Gap("", name) for name in names], text)


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
