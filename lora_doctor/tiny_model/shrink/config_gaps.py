"""Which entries of a config the code was reading when it raised, and finds empty there.

An exception says "unsupported operand type(s) for //: 'NoneType' and 'NoneType'"; its traceback
says more: the functions that ran, the config that they held, and in their source which entries of
it they read. Nothing here knows an architecture.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

_TOO_DEEP = 12  # frames of model code, from the raising one outwards


@dataclass(frozen=True)
class Gap:
    """An entry that code reads though it holds nothing.

    `config_class` is the name of the class that held it, empty where it is not known;
    `looked_up` are the keys that the code looks up in the value, where it takes it for a mapping.
    """

    config_class: str
    key: str
    looked_up: tuple[str, ...] = ()


def gaps(error: BaseException, nearby: bool = True) -> list[Gap]:
    """The empty entries that the innermost function of model code reads, which reads any.

    First those in the statement that raised; where there are none, those that the function has read
    before without testing whether they are empty (only with ``nearby``, and only when the exception
    speaks of None: numbers that do not fit are not the doing of an entry that is not there). What
    the code refuses by `if config.key is None: raise` counts as read there.
    """
    nearby = nearby and "None" in str(error)
    looked_up: list[str] = []
    for frame, line in _frames(error)[:_TOO_DEEP]:
        function = _source(frame)
        if function is None:
            continue
        reads = list(_reads(function, frame))
        empty = [read for read in reads if _is_empty(read.value)]
        tests = _refusing(function, line)
        here = [
            read
            for read in empty
            if read.first <= line <= read.last
            or (read.value is None and any(a <= read.first and read.last <= b for a, b in tests))
        ]
        before = [read for read in empty if read.last < line and not read.guarded]
        found = here or [read for read in before if read.value is None and nearby]
        if found:
            return list(
                dict.fromkeys(
                    Gap(
                        read.config_class,
                        read.key,
                        tuple(dict.fromkeys([*looked_up, *_lookups(function, f".{read.key}")])),
                    )
                    for read in found
                )
            )
        looked_up += _lookups(function)
    return []


def running_functions(error: BaseException) -> list[ast.FunctionDef]:
    """The functions of model code that were running, the raising one first."""
    found = [_source(frame) for frame, _ in _frames(error)[:_TOO_DEEP]]
    return [function for function in found if function is not None]


@dataclass(frozen=True)
class _Read:
    """One place in a function that reads an entry; lines are of the statement, in the file."""

    config_class: str
    key: str
    value: Any
    first: int
    last: int
    guarded: bool


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Frames of model code with the line that each was at, the raising one first."""
    found = []
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if name.split(".")[0] not in ("torch", "lora_doctor", "huggingface_hub"):
            found.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return found[::-1]


def _source(frame: FrameType) -> ast.FunctionDef | None:
    """The function of a frame, its line numbers those of the file; None without a source."""
    try:
        lines, start = inspect.getsourcelines(frame.f_code)
        parsed = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return None
    first = parsed.body[0] if parsed.body else None
    if not isinstance(first, ast.FunctionDef):
        return None
    ast.increment_lineno(first, start - 1)
    return first


def _reads(function: ast.FunctionDef, frame: FrameType) -> Iterator[_Read]:
    guarded = _guarded(function)
    module = frame.f_locals.get("self")
    config = getattr(module, "config", None) or frame.f_locals.get("config")
    origins = _origins(module, config)
    for statement in ast.walk(function):
        if not isinstance(statement, ast.stmt) or statement is function:
            continue
        whole = not any(isinstance(child, ast.stmt) for child in ast.iter_child_nodes(statement))
        for node in _own_expressions(statement):
            holder, key = _entry(node, frame, origins)
            if holder is None or callable(getattr(holder, key, None)):
                continue
            part = statement if whole else node
            last = part.end_lineno or part.lineno
            is_guarded = ast.unparse(node) in guarded
            value = getattr(holder, key, None)
            # `num_local_experts` is another name of `n_routed_experts`, which holds the value.
            key = (getattr(type(holder), "attribute_map", None) or {}).get(key, key)
            yield _Read(type(holder).__name__, key, value, part.lineno, last, is_guarded)


def _own_expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """Expressions of a statement without those of the statements inside it."""
    todo: list[ast.AST] = [statement]
    while todo:
        for child in ast.iter_child_nodes(todo.pop()):
            if not isinstance(child, ast.stmt):
                todo.append(child)
                if isinstance(child, ast.expr):
                    yield child


def _refusing(function: ast.FunctionDef, line: int) -> list[tuple[int, int]]:
    """First and last lines of the tests for None whose `raise` was at this line."""
    return [
        (node.test.lineno, node.test.end_lineno or node.test.lineno)
        for node in ast.walk(function)
        if isinstance(node, ast.If)
        and any(isinstance(part, ast.Is) for part in ast.walk(node.test))
        and any(
            isinstance(item, ast.Raise) and item.lineno <= line <= (item.end_lineno or line)
            for item in node.body
        )
    ]


def _entry(
    node: ast.expr, frame: FrameType, origins: dict[str, tuple[Any, str]]
) -> tuple[Any, str]:
    """The config and the key of `config.key`, `self.config.key`, `getattr(config, "key", ...)`, or
    of a module's attribute that its init took from there and that holds nothing."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        key = node.args[1] if len(node.args) >= 2 else None
        holder = _value(node.args[0], frame) if node.args else None
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and _is_config(holder):
            return holder, key.value
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        holder = _value(node.value, frame)
        if _is_config(holder):
            return holder, node.attr
        if ast.unparse(node.value) == "self" and _value(node, frame) is None:
            return origins.get(node.attr, (None, ""))
    return None, ""


def _origins(module: Any, config: Any) -> dict[str, tuple[Any, str]]:
    """Attribute of a running module to the config and the entry that its init took it from, for
    plain copies; a part of the config may have got a name of its own on the way."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(type(module).__init__)))
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, tuple[Any, str]] = {}
    held = {"config": config, "self.config": config} if _is_config(config) else {}
    for item in ast.walk(body):
        if not isinstance(item, ast.Assign) or not isinstance(item.value, ast.Attribute):
            continue
        holder, key = held.get(ast.unparse(item.value.value)), item.value.attr
        if holder is None:
            continue
        for name in [ast.unparse(target) for target in item.targets]:
            if _is_config(getattr(holder, key, None)):
                held[name] = getattr(holder, key)
            elif name.startswith("self."):
                found[name.removeprefix("self.")] = holder, key
    return found


def _value(node: ast.expr, frame: FrameType) -> Any:
    """What a chain of names and attributes holds; None for anything else. Runs no model code."""
    if isinstance(node, ast.Name):
        return frame.f_locals.get(node.id)
    if isinstance(node, ast.Attribute):
        holder = _value(node.value, frame)
        try:
            return vars(holder).get(node.attr)
        except TypeError:
            return None
    return None


def _is_config(value: Any) -> bool:
    return hasattr(value, "to_dict") and hasattr(type(value), "model_type")


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (dict, list, tuple)) and not value)


def _guarded(function: ast.FunctionDef) -> set[str]:
    """Expressions that the function itself tests for holding anything."""
    found: set[str] = set()
    for node in ast.walk(function):
        tests: list[ast.expr] = []
        if isinstance(node, (ast.If, ast.IfExp)):
            tests = [node.test]
        elif isinstance(node, ast.BoolOp):
            tests = node.values
        for test in tests:
            found |= {ast.unparse(part) for part in ast.walk(test) if isinstance(part, ast.expr)}
    return found


def _lookups(function: ast.FunctionDef, holder: str = "") -> list[str]:
    """Strings that are looked up in mappings: `names.get("<image>")`, `names["<image>"]`; with
    ``holder`` only in expressions that end like it."""
    found = []
    for node in ast.walk(function):
        key: Any = None
        mapping: ast.expr | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            key = node.args[0] if node.func.attr == "get" and node.args else None
            mapping = node.func.value
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            key, mapping = node.slice, node.value
        name = key.value if isinstance(key, ast.Constant) else None
        if isinstance(name, str) and mapping is not None and ast.unparse(mapping).endswith(holder):
            found.append(name)
    return found
