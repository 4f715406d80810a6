"""Copies of models that carry patches: functions put on a module keep pointing at the original.

``copy.deepcopy`` copies a module and everything in it, but a function is copied as itself, with
what it has closed over: ``model.forward = patched``, where ``patched`` calls the forward that was
there before, would run the original from within the copy.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from typing import Any

_DEPTH = 6
#: Names of a file lead to everything in it: a bound method and what it is bound to is enough.
_DEPTH_OF_NAMES = 2


def deep_copy(model: Any, memo: dict[int, Any] | None = None) -> Any:
    """``copy.deepcopy``, and the functions on its modules point into the copy.

    What a forward left on a module with its history (the weight that `weight_norm` computes before
    each forward) is copied as the numbers that it is: ``copy.deepcopy`` refuses it.

    Raises whatever ``copy.deepcopy`` raises.
    """
    import torch

    memo = {} if memo is None else memo
    for module in model.modules() if isinstance(model, torch.nn.Module) else ():
        for value in (*vars(module).values(), *module._buffers.values()):
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    twin = copy.deepcopy(model, memo)
    for _, attributes, name, value in patches(twin):
        rebound = _rebound(value, memo, _DEPTH)
        if rebound is not value:
            attributes[name] = rebound
    return twin


def patches(model: Any) -> Iterator[tuple[str, dict[str, Any], str, Any]]:
    """Callables among the attributes of modules: path, the module's attributes, name, callable.

    Submodules, hooks and parameters are in tables of their own and are not meant.
    """
    for path, module in model.named_modules():
        attributes = vars(module)
        for name, value in list(attributes.items()):
            if callable(value) and not isinstance(value, type):
                yield path, attributes, name, value


def captured(value: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """What a callable holds on to: closed over, as default, in a partial, by a name of its file, or
    bound to."""
    if depth == 0:
        return
    inner: list[Any] = []
    if isinstance(value, types.MethodType):
        yield value.__self__
        inner = [value.__func__]
    elif isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, types.FunctionType):
        inner = [*_cells(value), *(value.__defaults__ or ())]
        inner += (value.__kwdefaults__ or {}).values()
        for item in _globals(value).values():
            yield item
            yield from captured(item, min(depth - 1, _DEPTH_OF_NAMES))
    elif isinstance(value, (list, tuple, set)):
        inner = list(value)
    elif isinstance(value, dict):
        inner = list(value.values())
    for item in inner:
        yield item
        yield from captured(item, depth - 1)


def source_of(value: Any) -> str:
    """``file.py:line`` of the function behind a callable; empty when it has no Python code."""
    while True:
        if isinstance(value, types.MethodType):
            value = value.__func__
        elif isinstance(value, functools.partial):
            value = value.func
        else:
            break
    code = getattr(value, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def _cells(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """The names of its file that the function may use: in a script, the model is one of them."""
    space = function.__globals__
    return {name: space[name] for name in function.__code__.co_names if name in space}


def _rebound(value: Any, memo: dict[int, Any], depth: int) -> Any:
    """The same callable over the copies in ``memo``; itself when it holds none of them."""
    if depth == 0:
        return value
    if isinstance(value, types.MethodType):
        function = _rebound(value.__func__, memo, depth - 1)
        owner = memo.get(id(value.__self__), value.__self__)
        unchanged = function is value.__func__ and owner is value.__self__
        return value if unchanged else types.MethodType(function, owner)
    if isinstance(value, functools.partial):
        function = _rebound(value.func, memo, depth - 1)
        arguments = [_mapped(item, memo, depth - 1) for item in value.args]
        keywords = {key: _mapped(item, memo, depth - 1) for key, item in value.keywords.items()}
        same = function is value.func and all(map(_is, arguments, value.args))
        if same and all(map(_is, keywords.values(), value.keywords.values())):
            return value
        return functools.partial(function, *arguments, **keywords)
    if isinstance(value, types.FunctionType):
        return _function(value, memo, depth)
    return value


def _function(value: types.FunctionType, memo: dict[int, Any], depth: int) -> Any:
    old = value.__closure__ or ()
    cells = []
    for cell in old:
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            cells.append(cell)
            continue
        mapped = _mapped(content, memo, depth - 1)
        cells.append(cell if mapped is content else types.CellType(mapped))
    defaults = tuple(_mapped(item, memo, depth - 1) for item in value.__defaults__ or ())
    used = _globals(value)
    changed = {
        name: mapped
        for name, item in used.items()
        if (mapped := _mapped(item, memo, min(depth - 1, _DEPTH_OF_NAMES))) is not item
    }
    same = all(map(_is, cells, old)) and all(map(_is, defaults, value.__defaults__ or ()))
    if same and not changed:
        return value
    space = {**value.__globals__, **changed} if changed else value.__globals__
    twin = types.FunctionType(value.__code__, space, value.__name__, defaults or None, tuple(cells))
    twin.__kwdefaults__ = value.__kwdefaults__
    twin.__dict__.update(value.__dict__)
    twin.__doc__, twin.__qualname__ = value.__doc__, value.__qualname__
    return twin


def _mapped(content: Any, memo: dict[int, Any], depth: int) -> Any:
    if id(content) in memo:
        return memo[id(content)]
    if isinstance(content, (list, tuple)) and type(content) in (list, tuple):
        items = [_mapped(item, memo, depth) for item in content]
        return content if all(map(_is, items, content)) else type(content)(items)
    return _rebound(content, memo, depth)


def _is(one: Any, other: Any) -> bool:
    return one is other
