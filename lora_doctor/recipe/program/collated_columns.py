"""Columns that a collator of the user's reads from each row: the Trainer may remove them before."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.edit import Rewrite
from lora_doctor.recipe.program.evaluation import is_of_a_library
from lora_doctor.recipe.program.objects import is_none, loader_of, settings_of, top
from lora_doctor.recipe.program.order import rewrite_of
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.splices import added
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import (
    Call,
    Function,
    Instance,
    Known,
    NotPlainError,
    Thing,
    Value,
    plain,
)

#: Position of ``data_collator`` among the arguments of transformers' ``Trainer``.
_POSITION = 2
_REMOVES = "remove_unused_columns"


@dataclass(frozen=True)
class CollatedColumns:
    """What one collator reads by name from each row, whatever the row has."""

    names: tuple[str, ...]
    #: Names of labels that the arguments of the Trainer add to those of the model.
    labels: tuple[str, ...]
    #: The collator, and where it is handed over.
    collator: str
    trainer: str
    place: Place
    #: The change that keeps the columns; empty where it has to be made by hand.
    rewrites: tuple[Rewrite, ...] = ()


def collated_columns(setup: Setup) -> Iterator[CollatedColumns]:
    """For each Trainer of transformers that removes columns and has a collator of the user's."""
    for call in setup.program.calls:
        if not is_of_a_library(call) or top(call.name) != "transformers" or not call.certain:
            continue
        argument = call.argument("data_collator", _POSITION)
        function = _function(argument.value) if argument is not None else None
        if argument is None or function is None or loader_of(call.value("model", 0)) is None:
            continue
        labels = _labels_if_removed(call)
        names = tuple(_read_by(function))
        if names and labels is not None and call.open is None:
            collator = argument.span.text
            yield CollatedColumns(names, labels, collator, call.method, call.place, _keeping(call))


def _function(value: Value) -> Function | None:
    """The function that a collator is, or its ``__call__``."""
    if isinstance(value, Instance) and value.of is not None:
        found = value.of.names.get("__call__")
        return found if isinstance(found, Function) else None
    return value if isinstance(value, Function) else None


def _labels_if_removed(call: Call) -> tuple[str, ...] | None:
    """``label_names`` of the Trainer's arguments; ``None`` where columns stay, or may stay."""
    args = call.value("args", 1)
    if is_none(args):
        return ()
    settings = settings_of(args)
    if settings is None or settings.open is not None:
        return None
    keeps = settings.value(_REMOVES)
    if keeps is not None and not (isinstance(keeps, Known) and keeps.value is True):
        return None
    try:
        labels = plain(settings.value("label_names")) if settings.value("label_names") else ()
    except NotPlainError:
        return None
    return tuple(str(name) for name in labels or ())


def _keeping(call: Call) -> tuple[Rewrite, ...]:
    """``remove_unused_columns=False`` in the call that makes the arguments."""
    args = call.value("args", 1)
    made = args.call if isinstance(args, Thing) else None
    if made is None or made.node is None or made.argument(_REMOVES) is not None:
        return ()
    change = added(made, _REMOVES, "False")
    if change is None or not change[0].unit.editable:
        return ()
    return (rewrite_of(change),)


def _read_by(function: Function) -> list[str]:
    """Keys that a collator takes out of each row by ``row["key"]`` under no condition."""
    try:
        tree = ast.parse(textwrap.dedent(function.unit.span(function.node).text).strip())
    except (SyntaxError, ValueError):
        return []
    found = next(
        (one for one in ast.walk(tree) if isinstance(one, (ast.FunctionDef, ast.Lambda))), None
    )
    if found is None or any(isinstance(one, ast.Try) for one in ast.walk(found)):
        return []
    names = [one.arg for one in (*found.args.posonlyargs, *found.args.args) if one.arg != "self"]
    bound = [
        one.id for one in ast.walk(found)
        if isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load)
    ]  # fmt: skip
    if not names or names[0] in bound:
        return []
    rows = {names[0]}
    each = list(_each_of(found, names[0]))
    # A name that stands for something else as well may not be a row where it is read.
    row = {name for name in each if bound.count(name) == each.count(name)}
    asked = {
        node.left.value
        for node in ast.walk(found)
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant)
    }
    keys = dict.fromkeys(
        node.slice.value
        for node in _certain(found)
        if isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
        and _is_row(node.value, row, rows)
    )
    put = {
        node.slice.value
        for node in ast.walk(found)
        if isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.slice, ast.Constant)
    }
    return [key for key in keys if key not in asked and key not in put]


def _certain(found: ast.AST) -> Iterator[ast.AST]:
    """The nodes that stand under no condition of the function's."""
    for node in ast.iter_child_nodes(found):
        if isinstance(node, (ast.If, ast.IfExp, ast.BoolOp, ast.While, ast.Match)):
            continue
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            continue
        yield node
        yield from _certain(node)


def _each_of(found: ast.AST, rows: str) -> Iterator[str]:
    """Names that stand for one row: of loops and comprehensions over all of them."""
    for node in ast.walk(found):
        if not isinstance(node, (ast.For, ast.comprehension)):
            continue
        target, over = node.target, node.iter
        if isinstance(over, ast.Call) and ast.unparse(over.func) == "enumerate" and over.args:
            over = over.args[0]
            target = target.elts[-1] if isinstance(target, ast.Tuple) else target
        filtered = isinstance(node, ast.comprehension) and bool(node.ifs)
        of_rows = isinstance(over, ast.Name) and over.id == rows
        if of_rows and isinstance(target, ast.Name) and not filtered:
            yield target.id


def _is_row(node: ast.expr, row: set[str], rows: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in row
    numbered = isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
    if numbered and isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        assert isinstance(node.slice, ast.Constant)
        return node.value.id in rows and isinstance(node.slice.value, int)
    return False
