"""Labels that a metric decodes with their -100: read with ``ast``, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.static.python_source import last_name, short_text, unparse, walk

_DECODES = ("decode", "batch_decode")
_LABELS = "label_ids"


@dataclass(frozen=True)
class DecodedLabels:
    """A call that decodes them: its line in the function, and its text."""

    line: int
    code: str


def decoded_labels(function: ast.FunctionDef) -> DecodedLabels | None:
    """The call by which a ``compute_metrics`` decodes the labels that it is given; ``None`` where
    something in it may take the -100 out, or that is not known."""
    if not function.args.args:
        return None
    names = {
        name
        for name in _label_names(function, function.args.args[0].arg)
        if not _goes_elsewhere(function, name)
    }
    for node in walk(function):
        if not isinstance(node, ast.Call) or last_name(node.func) not in _DECODES or not node.args:
            continue
        if unparse(node.args[0]) in names:
            return DecodedLabels(node.lineno, short_text(node))
    return None


def _goes_elsewhere(function: ast.FunctionDef, name: str) -> bool:
    """Whether another call may change them in place: ``np.putmask(labels, …)``, ``clean(labels)``,
    ``labels.fill(…)``."""
    calls = [node for node in walk(function) if isinstance(node, ast.Call)]
    return any(
        getattr(one, "id", "") == name
        for call in calls
        if last_name(call.func) not in _DECODES
        for one in walk(call)
    )


def _label_names(function: ast.FunctionDef, given: str) -> set[str]:
    """Names that are set once, to the labels: ``_, labels = given``, ``given.label_ids``."""
    pairs = list(_set(function))
    every = [name for name, _ in pairs]
    labels = (f"{given}[1]", f"{given}.{_LABELS}")
    return {name for name, value in pairs if value in labels and every.count(name) == 1}


def _set(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Each name that is assigned, with the value; what is unpacked by its position."""
    for node in walk(function):
        if isinstance(node, ast.AugAssign):
            yield unparse(node.target), ""
        if not isinstance(node, ast.Assign):
            continue
        value = unparse(node.value)
        for target in node.targets:
            if isinstance(target, (ast.Tuple, ast.List)):
                parts = enumerate(target.elts)
                yield from ((unparse(one), f"{value}[{number}]") for number, one in parts)
            elif isinstance(target, ast.Subscript):
                yield unparse(target.value), ""  # entries of it are replaced
            else:
                yield unparse(target), value
