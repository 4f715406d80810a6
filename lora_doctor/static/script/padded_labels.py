"""Labels that a function copies from padded token ids as they are: read with ``ast``, never run."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from lora_doctor.static.python_source import FUNCTIONS, last_name, short_text, unparse, walk

#: What masks labels, or may.
_MASKS = re.compile(r"-\s*100\b|ignore_index|IGNORE|masked_fill|where\(|attention_mask")
#: What hands back the ids that it is given.
_COPIES = ("copy", "deepcopy", "clone", "list", "detach", "tolist", "squeeze", "flatten")
_TOKENIZERS = re.compile(r"tok\w*|processor|\w*tokenizer")


@dataclass(frozen=True)
class PaddedLabels:
    """Labels with those of the padding."""

    #: Line in the function, and text, of what sets them.
    line: int
    code: str
    #: The call that pads.
    padded: str


def padded_labels(function: ast.AST) -> PaddedLabels | None:
    """The labels that a function makes of ids padded to ``max_length``; ``None`` where it masks
    them, or that is not known."""
    nodes = list(walk(function))
    if _MASKS.search(unparse(function)) is not None:
        return None
    padded = {
        unparse(target): short_text(node.value)
        for node in nodes
        if isinstance(node, ast.Assign) and _pads(node.value)
        for target in node.targets
    }
    set_twice = [unparse(one) for one in nodes if _is_labels(one)]
    for node in nodes:
        value = _labels_set(node)
        if value is None or len(set_twice) > 1:
            continue
        source = _ids_of(value)
        call = padded.get(unparse(source)) if source is not None else None
        if source is not None and call is None and _pads(source):
            call = short_text(source)
        if call is not None:
            return PaddedLabels(getattr(node, "lineno", 1), short_text(node), call)
    return None


def _pads(node: ast.expr) -> bool:
    """``tokenizer(text, padding="max_length")``."""
    return (
        isinstance(node, ast.Call)
        and _TOKENIZERS.fullmatch(last_name(node.func).lower()) is not None
        and any(
            one.arg == "padding"
            and isinstance(one.value, ast.Constant)
            and one.value.value == "max_length"
            for one in node.keywords
        )
    )


def _labels_set(node: ast.AST) -> ast.expr | None:
    """What ``row["labels"]`` is set to."""
    if isinstance(node, ast.Assign) and any(_is_labels(one) for one in node.targets):
        return node.value
    return None


def _is_labels(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.slice, ast.Constant)
        and node.slice.value == "labels"
    )


def _ids_of(node: ast.expr) -> ast.expr | None:
    """``row`` of ``row["input_ids"]``, ``row.input_ids`` and copies of it."""
    if isinstance(node, ast.Call):
        given = node.args[0] if node.args else None
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        inner = given if given is not None else owner
        return _ids_of(inner) if inner is not None and last_name(node.func) in _COPIES else None
    if isinstance(node, ast.ListComp) and len(node.generators) == 1:
        return _ids_of(node.generators[0].iter) if _copies_each(node) else None
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        return _ids_of(node.value)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return node.value if node.slice.value == "input_ids" else None
    named = isinstance(node, ast.Attribute) and node.attr == "input_ids"
    return node.value if named and isinstance(node, ast.Attribute) else None


def _copies_each(node: ast.ListComp) -> bool:
    """``[ids.copy() for ids in …]``."""
    (over,) = node.generators
    each = node.elt
    while isinstance(each, ast.Call) and last_name(each.func) in _COPIES:
        owner = each.func.value if isinstance(each.func, ast.Attribute) else None
        inner = each.args[0] if each.args else owner
        if inner is None:
            return False
        each = inner
    return isinstance(each, ast.Name) and unparse(each) == unparse(over.target) and not over.ifs


def function_of(tree: ast.Module) -> ast.AST | None:
    """The first function of a text."""
    return next((one for one in walk(tree) if isinstance(one, (*FUNCTIONS, ast.Lambda))), None)
