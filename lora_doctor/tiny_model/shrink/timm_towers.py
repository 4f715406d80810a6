"""Towers that timm makes by a name: their numbers, written into the config that has only the name.

A config like Gemma 3n's says `architecture: "mobilenetv5_300m_enc"` and no width and no depth. timm
is asked what the name means: the arguments that reach the constructor of the class. Those that are
sizes go into `model_args`, which transformers hands to `timm.create_model`: the same model, and its
numbers can be shrunk like those of any other config. Nothing here knows a name.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from lora_doctor.tiny_model.config_roles import Node, flat_ints, is_blocks, role_of, tree
from lora_doctor.tiny_model.shrink.sizes import Changes

#: The entry that transformers hands to `timm.create_model`.
ARGUMENTS = "model_args"
#: What transformers or timm sets itself, so that it cannot be given twice.
_GIVEN = ("num_classes", "in_chans", "features_only", "out_indices", "device", "dtype")
_CHOICES = 3  # of towers in the place of one that does not have what is read
_ROUNDS = 6  # of arguments that an entry point refuses


@dataclass(frozen=True)
class Tower:
    """What timm says about a name: `sizes` are arguments that are numbers (JSON of a dict, so that
    they cannot be changed), `width` is that of its features."""

    sizes: str
    width: int


def named_towers(root: Node) -> Iterator[tuple[Node, str]]:
    """Configs of the tree that name a timm architecture, and the entry that does."""
    timm = sys.modules.get("timm")  # its configs import it, where it is installed
    if timm is None:
        return
    for node in root.walk():
        if not hasattr(node.holder, ARGUMENTS) or isinstance(node.holder, dict):
            continue
        for key, value in node.values.items():
            if isinstance(value, str) and value and timm.is_model(value):
                yield node, key
                break


def with_sizes(config: Any) -> Any:
    """`config`, or a copy in which the towers that timm makes by name show their numbers."""
    if not any(named_towers(tree(config))):
        return config
    sized, found = copy.deepcopy(config), False
    for node, key in named_towers(tree(sized)):
        given = getattr(node.holder, ARGUMENTS) or {}
        tower = _ask(node.values[key], json.dumps(given, default=str))
        sizes = json.loads(tower.sizes) if tower else {}
        if sizes.keys() - given.keys():
            setattr(node.holder, ARGUMENTS, {**sizes, **given})
            found = True
    return sized if found else config


def fit_towers(before: Any, small: Any, keep_depth: bool, changes: Changes) -> None:
    """After the numbers of `before` were shrunk into `small`: of equal blocks one each, and the
    entries that say how wide the tower's features are say how wide they are now."""
    towers = list(named_towers(tree(before)))
    if not towers:
        return
    nodes = {node.path: node for node in tree(small).walk()}
    for full, key in towers:
        node = nodes[full.path]
        arguments = getattr(node.holder, ARGUMENTS) or {}
        for name, value in arguments.items():
            if is_blocks(value) and not keep_depth:
                arguments[name] = _one_of_each(value)
                changes.note("layers", node.path, f"{ARGUMENTS}.{name}", value, arguments[name])
        was = _ask(full.values[key], json.dumps(getattr(full.holder, ARGUMENTS), default=str))
        now = _ask(node.values[key], json.dumps(arguments, default=str))
        if was is None or now is None or not was.width or not now.width:
            continue
        for name, value in full.values.items():
            if value == was.width and role_of(name, value) == "width":
                changes.note("width", node.path, name, node.values[name], now.width)
                node.set(name, now.width)


def tower_with(node: Node, key: str, wanted: Sequence[str]) -> dict[str, Any]:
    """Entries for a config whose model reads sizes out of its empty `model_args`: those of the
    tower that it names or, where that one has no such sizes, of the first of timm that has.

    Args:
        node: the config; without a name of a timm architecture in it there is nothing to fill.
        key: the entry that is empty.
        wanted: the names of the sizes (`embed_dim`).
    """
    if key != ARGUMENTS or not wanted:
        return {}
    for one, name_key in named_towers(node):
        if one is not node:
            continue
        timm = sys.modules["timm"]
        for name in [node.values[name_key], *_making(timm, wanted)]:
            tower = _ask(name, "{}")
            sizes = json.loads(tower.sizes) if tower else {}
            if all(size in sizes for size in wanted):
                return {name_key: name, key: sizes}
    return {}


def _making(timm: Any, wanted: Sequence[str]) -> list[str]:
    """A few of timm's names whose class takes the sizes that are wanted, one of each class."""
    found: dict[type, str] = {}
    for name in timm.list_models():
        made = inspect.get_annotations(timm.model_entrypoint(name), eval_str=False).get("return")
        if inspect.isclass(made) and set(wanted) <= set(inspect.signature(made).parameters):
            found.setdefault(made, name)
            if len(found) == _CHOICES:
                break
    return list(found.values())


@functools.lru_cache(maxsize=64)
def _ask(name: str, given: str) -> Tower | None:
    """What timm makes of a name and arguments (JSON); `None` where it makes nothing of them."""
    from accelerate import init_empty_weights

    timm = sys.modules["timm"]
    arguments = {k: v for k, v in json.loads(given).items() if k not in _GIVEN}
    try:
        with init_empty_weights():
            model = timm.create_model(name, pretrained=False, num_classes=0, **_copied(arguments))
    except Exception:  # noqa: BLE001 - building the whole model raises it again
        return None
    width = getattr(model, "num_features", 0)
    sizes = _sizes(_constructed(name, type(model), _copied(arguments)))
    for _ in range(_ROUNDS):
        try:
            with init_empty_weights():
                again = timm.create_model(
                    name, pretrained=False, num_classes=0, **_copied({**sizes, **arguments})
                )
        except TypeError as error:  # "got multiple values for keyword argument 'depth'"
            refused = [key for key in sizes if f"'{key}'" in str(error)]
            for key in refused:
                del sizes[key]
            if refused:
                continue
            return Tower("{}", width)
        except Exception:  # noqa: BLE001 - it does not take its own numbers: nothing is known
            return Tower("{}", width)
        return Tower(json.dumps(sizes if _shapes(again) == _shapes(model) else {}), width)
    return Tower("{}", width)


class _Seen(Exception):
    """The constructor was reached: nothing needs to be built."""


def _constructed(name: str, cls: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `timm.create_model` hands to the constructor of `cls`, and its defaults."""
    timm = sys.modules["timm"]
    found: dict[str, Any] = {}

    def look(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(own).bind(self, *args, **kwargs)
        bound.apply_defaults()
        for parameter in inspect.signature(own).parameters.values():
            value = bound.arguments.get(parameter.name)
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                found.update(value or {})
            elif value is not self:
                found[parameter.name] = value
        raise _Seen

    own = vars(cls).get("__init__", cls.__init__)
    with mock.patch.object(cls, "__init__", look), contextlib.suppress(_Seen):
        timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    return found


def _sizes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a constructor's arguments that are sizes of the model, as JSON has them."""
    found = {}
    for key, value in arguments.items():
        numbers = list(flat_ints(value))
        whole = numbers and role_of(key, value) not in ("other", "keep", "drop")
        if key in _GIVEN or not (whole or is_blocks(value)):
            continue
        try:
            found[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError):  # it holds what only code can
            continue
    return found


def _copied(arguments: dict[str, Any]) -> dict[str, Any]:
    """For timm, which writes into the descriptions of blocks that it is given."""
    return copy.deepcopy(arguments)


def _one_of_each(blocks: Any) -> Any:
    """Blocks without those that are described just like one before in the same stage."""
    if all(isinstance(item, dict) for item in blocks):
        return [item for number, item in enumerate(blocks) if item not in blocks[:number]]
    return [_one_of_each(item) for item in blocks]


def _shapes(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(weight.shape)) for name, weight in model.named_parameters()]
