"""Heads that are made anew for each task: what changes with the number of labels.

A base checkpoint has no weights for them, and each task has other labels: without being trained
they stay random, and without being saved they are other random numbers after every loading. PEFT's
wrappers of SEQ_CLS, TOKEN_CLS and QUESTION_ANS know three names; asked here is the class itself.
Runs in a child process; accelerate is imported inside functions.
"""

from __future__ import annotations

import copy
from typing import Any


def task_heads(model: Any) -> tuple[str, ...]:
    """Paths of the modules that another number of labels changes the shape of, as they go into
    ``modules_to_save``: the outermost module beside the base model, else the layer itself.

    ``model``: built from a config, on any device. Empty where its class cannot be built again on
    the meta device, or no shape follows the labels.
    """
    twin = _with_another_label(model)
    if twin is None:
        return ()
    shapes = {name: tuple(value.shape) for name, value in twin.named_parameters()}
    bases = _bases(model)
    found: dict[str, None] = {}
    for name, value in model.named_parameters():
        if shapes.get(name, ()) != tuple(value.shape):
            found.setdefault(_to_save(name, bases))
    return _apart(model, [path for path in found if path])


def _apart(model: Any, paths: list[str]) -> tuple[str, ...]:
    """The same modules under names of which none fits a module inside another one (`head.head`):
    PEFT compares an entry with the end of a path, and the copy of a copy stays frozen."""
    while True:
        inside = {
            path: [
                f"{path}.{name}" for name, _ in model.get_submodule(path).named_modules() if name
            ]
            for path in paths
        }
        outer = next(
            (path for path in paths if any(name.endswith(tuple(paths)) for name in inside[path])),
            None,
        )
        if outer is None:
            return tuple(paths)
        parts = [
            f"{outer}.{name}"
            for name, child in model.get_submodule(outer).named_children()
            if any(True for _ in child.parameters())
        ]
        own = any(True for _ in model.get_submodule(outer).parameters(recurse=False))
        if own or not parts:  # its own weights have no other name
            return tuple(paths)
        at = paths.index(outer)
        paths = [*paths[:at], *parts, *paths[at + 1 :]]


def _bases(model: Any) -> set[str]:
    """Names of the base model: the one that the class gives, and the module that most of the
    weights are in (RT-DETR's is `model`, whatever its class calls it)."""
    sizes = {
        name: sum(one.numel() for one in child.parameters())
        for name, child in model.named_children()
    }
    most = [name for name, size in sizes.items() if 2 * size > sum(sizes.values())]
    return {getattr(model, "base_model_prefix", "") or "", *most}


def _to_save(parameter: str, bases: set[str]) -> str:
    """The module that holds a parameter; empty where that is the model or its base."""
    first, *inner = parameter.split(".")[:-1] or [""]
    if first not in bases:
        return first
    while inner and inner[-1].isdigit():  # entries are compared with the end of a path
        inner.pop()
    return ".".join((first, *inner)) if inner else ""


def _with_another_label(model: Any) -> Any:
    from accelerate import init_empty_weights

    config = getattr(model, "config", None)
    labels = getattr(config, "num_labels", None)
    build = getattr(type(model), "_from_config", None)
    if not isinstance(labels, int) or build is None:
        return None
    other: Any = copy.deepcopy(config)
    try:
        other.num_labels = labels + 1
        with init_empty_weights():  # numbers that an init computes stay real (SegFormer in 4.37)
            return build(other)
    except Exception:  # noqa: BLE001 - a class that cannot be asked is trained without its head
        return None
