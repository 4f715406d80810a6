"""A config of a class that cannot be made without arguments, as a user would make it.

The example in the class's own docstring comes first (`EncoderDecoderConfig` takes an encoder's and
a decoder's), then what its validation asks for by name ("hidden_size_per_layer_input must be 0").
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

_ROUNDS = 6  # of values that the validation asks for, one at a time


def first_config(config_class: Any) -> tuple[Any, tuple[str, ...]]:
    """An instance: with the class's defaults, else as documented, else as its objections ask; and
    what was set beside the defaults, as ``entry = value``.

    Raises:
        Exception: what the class says against its own defaults, where no way leads to an instance.
    """
    try:
        return config_class(), ()
    except Exception as error:
        found = documented(config_class)
        if found is not None:
            parts = {k: v for k, v in vars(found).items() if _is_config_class(type(v))}
            return found, tuple(f"{key} = {type(part).__name__}()" for key, part in parts.items())
        given = _as_asked(config_class, error)
        if given is None:
            raise
        return config_class(**given), tuple(_entries(given))


def documented(config_class: type) -> Any:
    """The instance that the example in the docstring makes of other configs, or ``None``.

    Only imports from transformers and calls of config classes are run: no model is built, and
    nothing is loaded.
    """
    names: dict[str, Any] = {}
    for statement in _statements(inspect.getdoc(config_class) or ""):
        if isinstance(statement, ast.ImportFrom) and statement.module == "transformers":
            library = importlib.import_module("transformers")
            for alias in statement.names:
                # Asking for a model class imports its module, and what that needs.
                is_config = alias.name.endswith("Config")
                value = getattr(library, alias.name, None) if is_config else None
                if _is_config_class(value):
                    names[alias.asname or alias.name] = value
        elif isinstance(statement, ast.Assign) and _only_configs(statement.value, names):
            code = compile(ast.fix_missing_locations(ast.Module([statement], [])), "<doc>", "exec")
            try:
                exec(code, {"__builtins__": {}}, names)
            except Exception:  # noqa: BLE001 - an example that no longer holds shows nothing
                return None
            made = [value for value in names.values() if type(value) is config_class]
            if made:
                return made[0]
    return None


def _statements(text: str) -> Iterator[ast.stmt]:
    import doctest  # brings a debugger and a test runner with it, and is rarely needed

    try:
        examples = doctest.DocTestParser().get_examples(text)
    except ValueError:  # the prompts are not those of an example
        return
    for example in examples:
        try:
            yield from ast.parse(example.source).body
        except SyntaxError:
            continue


def _is_config_class(value: Any) -> bool:
    return isinstance(value, type) and hasattr(value, "model_type") and hasattr(value, "to_dict")


def _only_configs(node: ast.expr, names: dict[str, Any]) -> bool:
    """Whether an expression is a call of a known config class, or of a maker on one, with values
    and configs made before as arguments."""
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    if isinstance(called, ast.Attribute):
        if not called.attr.startswith("from_") or called.attr.startswith("from_pretrained"):
            return False
        called = called.value
    if not isinstance(called, ast.Name) or not _is_config_class(names.get(called.id)):
        return False
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    return all(
        _only_configs(value, names)
        or (isinstance(value, ast.Name) and hasattr(names.get(value.id), "to_dict"))
        or (isinstance(value, ast.Constant) and value.value is not ...)
        for value in given
    )


def _as_asked(config_class: Any, error: Exception) -> dict[str, Any] | None:
    """Arguments that the class takes: what its objections ask for by name, in this config or in one
    of its parts; ``None`` where they ask for nothing, or for the same again."""
    given: dict[str, Any] = {}
    parts = list(getattr(config_class, "sub_configs", None) or {})
    objection = str(error)
    for _ in range(_ROUNDS):
        wanted = re.search(r"`?\b(\w+)`? must be `?(-?\d+(?:\.\d+)?|True|False|None)\b", objection)
        if wanted is None:
            return None
        entry = {wanted[1]: ast.literal_eval(wanted[2])}
        for part in ("", *parts):
            tried = (
                {**given, part: {**given.get(part, {}), **entry}} if part else {**given, **entry}
            )
            try:
                config_class(**tried)
            except Exception as again:  # noqa: BLE001 - read below
                if f"{wanted[1]} must be" not in str(again).replace("`", ""):
                    given, objection = tried, str(again)
                    break
            else:
                return tried
        else:
            return None
    return None


def _entries(given: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in given.items():
        if isinstance(value, dict):
            yield from _entries(value, f"{path}{key}.")
        else:
            yield f"{path}{key} = {value}"
