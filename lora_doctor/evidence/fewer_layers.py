"""A recipe that names single layers or tokens, on a tiny model that has fewer of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_doctor.evidence.smaller_numbers import with_adapters_left, with_sizes_that_fit
from lora_doctor.nn.embeddings import input_embeddings
from lora_doctor.recipe.recipe import Recipe

if TYPE_CHECKING:
    from lora_doctor.model.loading import Loader

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
#: Keys that name token ids.
_TOKENS = ("trainable_token_indices", "token_indices", "alora_invocation_tokens")
#: A number in a regular expression that is not part of a name such as ``w1`` or ``fc2``.
_LAYER_IN_REGEX = re.compile(r"(?<![A-Za-z_\d{,])\d+")
#: A number that stands for itself in a regular expression, as the layer of a path.
_PLAIN_IN_REGEX = re.compile(r"(?<=\\\.)\d+(?=\\\.)")
_KEYS_OF_NUMBERS = ("layers_to_transform", "layer_indexes")
_KEYS_OF_NAMES = ("target_modules", "target_parameters", "exclude_modules", "modules_to_save")


@dataclass(frozen=True)
class Fitted:
    """A recipe for a tiny model. ``unfit``: keys that may still name layers which it is too small
    to have. ``absent``: target modules that only the model at full size has, left out."""

    recipe: Recipe
    unfit: tuple[str, ...]
    absent: tuple[str, ...]


def fitted(recipe: Recipe, model: Any, loader: Loader) -> Fitted:
    """The recipe with layers, tokens and target modules that ``model`` has, and numbers that suit
    its sizes; ``loader``: of its class at full size."""
    moved, unfit = fit(recipe, model, loader.config)

    @functools.cache
    def full_size() -> Any:
        return loader.build("meta")

    def wrong() -> list[str]:
        names = _unnamed(recipe.get("target_modules"), full_size())
        there = recipe.override({"target_modules": names}, "argument")
        return list(fit(there, model, loader.config)[0].get("target_modules") or ())

    left, absent = without_absent_targets(with_adapters_left(moved), model, wrong)
    return Fitted(with_sizes_that_fit(left, model, full_size), unfit, absent)


def fit(recipe: Recipe, model: Any, config: Any = None) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with layer numbers that this model has, and the keys where that cannot be done.

    A layer that the config lists by number (``cross_attention_layers``) stays one of those, the
    last layer stays the last one, and one shortly before it stays there; another number from the
    depth up is taken modulo the depth: layer 30 of 32 becomes layer 0 of 2. In a regular expression
    only a number between two escaped dots can be moved; when the rest matches nothing, that is no
    answer. ``config``: of the model at full size, which tells how many layers there are.
    """
    recipe = _with_tokens_that_are_there(recipe, model, config)
    depth = _depth(name for name, _ in model.named_modules())
    if not depth:
        return recipe, ()
    here = getattr(model, "config", None)
    known = {**_last_layers(config, here), **_listed_layers(config, here)}

    def moved(number: int) -> int:
        return known.get(number, number % depth)

    changes = {key: _moved_numbers(recipe.get(key), moved) for key in _KEYS_OF_NUMBERS}
    changes |= {key: _moved_names(recipe.get(key), moved) for key in _KEYS_OF_NAMES}
    changes["layer_replication"] = _moved_ranges(recipe.get("layer_replication"), depth)
    changes = {key: value for key, value in changes.items() if value != recipe.get(key)}
    fixed = [key for key in _KEYS_OF_NAMES if _numbers_stay(recipe.get(key))]
    return (recipe.override(changes, "argument") if changes else recipe), tuple(fixed)


def without_absent_targets(
    recipe: Recipe, model: Any, wrong: Callable[[], Iterable[str]]
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe without the target modules that only the model at full size has, and their names.

    Some classes place modules by the number of a layer, and a few layers have none of them. An
    entry that matches nothing there either stays, and fails here as it does there; so does a list
    of which nothing would be left. ``wrong``: the entries, as they read here, that match nothing at
    full size; called only where an entry matches nothing here.
    """
    targets = recipe.get("target_modules")
    absent = _unnamed(targets, model) if isinstance(targets, list) else []
    if not absent or len(absent) == len(targets):
        return recipe, ()
    nowhere = set(wrong())
    absent = [name for name in absent if name not in nowhere]
    if not absent:
        return recipe, ()
    kept = [name for name in targets if name not in absent]
    return recipe.override({"target_modules": kept}, "argument"), tuple(absent)


def _unnamed(entries: Iterable[str], model: Any) -> list[str]:
    """The entries that are the end of no module's path."""
    paths = [f".{name}" for name, _ in model.named_modules()]
    return [entry for entry in entries if not any(path.endswith(f".{entry}") for path in paths)]


def _with_tokens_that_are_there(recipe: Recipe, model: Any, config: Any) -> Recipe:
    """The recipe with token ids of this vocabulary, each another one, for those that the model at
    full size has; an id that it lacks as well stays as it is, and fails here as it does there."""
    embeddings = input_embeddings(model)
    here = int(embeddings.weight.shape[0]) if hasattr(embeddings, "weight") else 0
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    there = getattr(text, "vocab_size", None) or 0
    asked = sorted({*recipe.trained_tokens(), *recipe.invocation_tokens()})
    free = iter(token for token in range(here - 1, -1, -1) if token not in asked)
    moved = {token: next(free, token) for token in asked if here <= token < there}
    if not moved:
        return recipe

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put(ids) for key, ids in value.items()}
        return [moved.get(token, token) for token in value] if isinstance(value, list) else value

    keys = [key for key in _TOKENS if recipe.get(key)]
    return recipe.override({key: put(recipe.get(key)) for key in keys}, "argument")


def _moved_numbers(value: Any, moved: Callable[[int], int]) -> Any:
    """One layer or several by their numbers."""
    if isinstance(value, int):
        return moved(value)
    if isinstance(value, (list, tuple)):
        return sorted({moved(int(number)) for number in value})
    return value


def _moved_ranges(value: Any, depth: int) -> Any:
    """``layer_replication``, ranges of layers that are stacked: every layer once, and the last one
    again where the recipe repeats any."""
    try:
        stacked = [number for start, end in value or () for number in range(start, end)]
    except (TypeError, ValueError):
        return value  # PEFT says what it is
    if not stacked:
        return value
    repeated = len(set(stacked)) < len(stacked)
    return [[0, depth], *([[depth - 1, depth]] if repeated else [])]


def _moved_names(value: Any, moved: Callable[[int], int]) -> Any:
    """Names of modules, or a regular expression for them, with the numbers of layers in them."""

    def replaced(match: re.Match[str]) -> str:
        return str(moved(int(match[0])))

    if isinstance(value, str):
        return _PLAIN_IN_REGEX.sub(replaced, value)
    if isinstance(value, (list, tuple)):
        return list(dict.fromkeys(_NUMBER.sub(replaced, name) for name in value))
    return value


def _numbers_stay(value: Any) -> bool:
    """Whether a regular expression may name layers by numbers that cannot be moved."""
    return isinstance(value, str) and bool(_LAYER_IN_REGEX.search(_PLAIN_IN_REGEX.sub("", value)))


def _last_layers(full: Any, tiny: Any) -> dict[int, int]:
    """The number of the last layer of each tower, at full size and here, and of those before it
    in the second half of the stack here; as far as all agree."""
    from lora_doctor.tiny_model.config_roles import role_of, tree

    if full is None or tiny is None:
        return {}
    before = {node.path: node.values for node in tree(full).walk()}
    found: dict[int, set[int]] = {}
    for node in tree(tiny).walk():
        for key, value in before.get(node.path, {}).items():
            now = node.values.get(key)
            if role_of(key, value) == "depth" and isinstance(now, int) and now > 0:
                for back in range(1, max(1, now // 2) + 1):
                    found.setdefault(int(value) - back, set()).add(now - back)
    return {number: next(iter(here)) for number, here in found.items() if len(here) == 1}


def _listed_layers(full: Any, tiny: Any) -> dict[int, int]:
    """Numbers of layers that an entry of the config lists, to one that it lists here; as far as
    all such entries agree."""
    from lora_doctor.tiny_model.config_roles import is_numbers, role_of, tree

    if full is None or tiny is None:
        return {}
    before = {node.path: node.values for node in tree(full).walk()}
    found: dict[int, set[int]] = {}
    for node in tree(tiny).walk():
        for key, listed in before.get(node.path, {}).items():
            now = node.values.get(key)
            if role_of(key, listed) != "layer_index" or not is_numbers(listed):
                continue
            if not is_numbers(now) or not now or set(listed) <= {0, 1}:
                continue
            for index, number in enumerate(listed):
                found.setdefault(int(number), set()).add(int(now[index % len(now)]))
    return {number: next(iter(here)) for number, here in found.items() if len(here) == 1}


def _depth(names: Iterable[str]) -> int:
    """The number of layers of the deepest stack; experts inside a layer do not count."""
    firsts = (re.search(r"\.(\d+)(?:\.|$)", name) for name in names)
    return max((int(match[1]) + 1 for match in firsts if match), default=0)
