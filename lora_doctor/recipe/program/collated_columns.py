"""Columns that a collator of the user's, or a transform of the set, reads from each row: the
Trainer may remove them before."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.edit import Rewrite
from lora_doctor.recipe.program.code_of import code_of
from lora_doctor.recipe.program.evaluation import is_of_a_library
from lora_doctor.recipe.program.objects import is_none, is_one_split, loader_of, settings_of, top
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
    Unknown,
    Value,
    plain,
    same,
)

#: Position of ``data_collator`` and of the sets among the arguments of transformers' ``Trainer``.
_POSITION = 2
_SETS = (("train_dataset", 3), ("eval_dataset", 4))
#: Methods by which a set is given a transform: in place, and as another set.
_TRANSFORMS = ("set_transform", "with_transform")
_REMOVES = "remove_unused_columns"


@dataclass(frozen=True)
class CollatedColumns:
    """What one collator, or one transform, reads by name from each row, whatever the row has."""

    names: tuple[str, ...]
    #: Names of labels that the arguments of the Trainer add to those of the model.
    labels: tuple[str, ...]
    #: The function, the class of the trainer, and where the trainer is made.
    collator: str
    trainer: str
    place: Place
    #: The change that keeps the columns; empty where it has to be made by hand.
    rewrites: tuple[Rewrite, ...] = ()


def collated_columns(setup: Setup) -> Iterator[CollatedColumns]:
    """For each Trainer of transformers that removes columns and has a collator of the user's, or a
    set with a transform of theirs."""
    for call in setup.program.calls:
        if not is_of_a_library(call) or top(call.name) != "transformers" or not call.certain:
            continue
        labels = _labels_if_removed(call)
        if labels is None or call.open is not None or loader_of(call.value("model", 0)) is None:
            continue
        for text, names in (*_collated(call), *_transformed(setup, call)):
            if names:
                yield CollatedColumns(names, labels, text, call.method, call.place, _keeping(call))


def _collated(call: Call) -> Iterator[tuple[str, tuple[str, ...]]]:
    argument = call.argument("data_collator", _POSITION)
    function = _function(argument.value) if argument is not None else None
    if argument is not None and function is not None:
        yield argument.span.text, tuple(_read_by(function))


def _transformed(setup: Setup, call: Call) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A transform is called with a dictionary of whole columns, of what the set has left."""
    sets = [value for name, place in _SETS if (value := call.value(name, place)) is not None]
    seen: set[str] = set()
    for one in setup.program.calls:
        if one.method not in _TRANSFORMS or not one.certain or one.open is not None:
            continue
        given = one.argument("transform", 0)
        on = one.receiver if one.method == "set_transform" else None
        trained = any(
            (isinstance(value, Thing) and value.call is one) or (on and _is_one_set(on, value))
            for value in sets
        )
        function = _function(given.value) if given is not None else None
        alone = one.value("columns", 1) is None
        if given is not None and function is not None and trained and alone:
            text = given.span.text
            if text not in seen:
                seen.add(text)
                yield text, tuple(_read_by(function, columns=True))


def _is_one_set(one: Value, other: Value) -> bool:
    if isinstance(one, Unknown) and isinstance(other, Unknown):
        return is_one_split(one, other)
    return same(one, other)


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


def _read_by(function: Function, *, columns: bool = False) -> list[str]:
    """Keys that a collator takes out of each row by ``row["key"]`` under no condition. ``columns``:
    it is given a dictionary of columns and no rows."""
    found = code_of(function)
    if found is None or isinstance(found, ast.AsyncFunctionDef):
        return []
    if any(isinstance(one, ast.Try) for one in ast.walk(found)):
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
    if columns:
        row, rows = rows, set()
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
