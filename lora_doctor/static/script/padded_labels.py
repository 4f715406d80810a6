"""Labels that a function copies from padded token ids as they are: read with ``ast``, never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lora_doctor.static.python_source import last_name, short_text, unparse, walk

#: What masks labels, or may.
_MASKS = re.compile(
    r"-\s*100\b|(?i:ignore)|where\(|pad_token_id|\b(?!attention_mask\b)\w*(?i:mask)\w*"
)
_MASK = "attention_mask"
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
    if _MASKS.search(unparse(function)) is not None or _changes(nodes):
        return None
    padded = {
        unparse(target): short_text(node.value)
        for node in nodes
        if isinstance(node, ast.Assign) and _pads(node.value)
        for target in node.targets
    }
    set_to = [(node, value) for node in nodes for value in _labels_set(node)]
    named = _set_once(nodes)
    for node, value in set_to if len(set_to) == 1 else ():
        source = _ids_of(value, named)
        call = padded.get(unparse(source)) if source is not None else None
        if source is not None and call is None and _pads(source):
            call = short_text(source)
        if call is not None:
            is_set = isinstance(node, ast.Assign)
            code = short_text(node) if is_set else f"labels: {short_text(value)}"
            return PaddedLabels(value.lineno, code, call)
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


def _changes(nodes: list[ast.AST]) -> bool:
    """Whether single ids are set, or the attention mask is read for anything else than to hand it
    on under its name."""
    if any(
        isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and not isinstance(_key(node), str)
        for node in nodes
    ):
        return True
    handed = {
        id(inner)
        for node in nodes
        for name, value in _entries(node)
        if name == _MASK
        for inner in walk(value)
    }
    return any(
        isinstance(node, (ast.Subscript, ast.Attribute, ast.Name))
        and id(node) not in handed
        and _MASK in (getattr(node, "id", ""), getattr(node, "attr", ""), _key(node))
        for node in nodes
    )


def _key(node: ast.AST) -> object:
    inner = node.slice if isinstance(node, ast.Subscript) else None
    return inner.value if isinstance(inner, ast.Constant) else None


def _entries(node: ast.AST) -> list[tuple[object, ast.expr]]:
    """The entries of a dictionary that is written out."""
    if isinstance(node, ast.Dict):
        keys = [one.value if isinstance(one, ast.Constant) else None for one in node.keys]
        return list(zip(keys, node.values, strict=True))
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict":
        return [(one.arg, one.value) for one in node.keywords]
    return []


def _set_once(nodes: list[ast.AST]) -> dict[str, ast.expr]:
    """Names that are set in one place, and what to."""
    stores = [
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    return {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign) and len(node.targets) == 1
        for target in node.targets
        if isinstance(target, ast.Name) and stores.count(target.id) == 1
    }


def _labels_set(node: ast.AST) -> list[ast.expr]:
    """What ``row["labels"]`` is set to, or is in a dictionary that is written out."""
    if isinstance(node, ast.Assign) and any(_is_labels(one) for one in node.targets):
        return [node.value]
    return [value for name, value in _entries(node) if name == "labels"]


def _is_labels(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.slice, ast.Constant)
        and node.slice.value == "labels"
    )


def _ids_of(node: ast.expr, named: Mapping[str, ast.expr]) -> ast.expr | None:
    """``row`` of ``row["input_ids"]``, ``row.input_ids`` and copies of it, also by a name."""
    if isinstance(node, ast.Name) and node.id in named:
        return _ids_of(named[node.id], {key: one for key, one in named.items() if key != node.id})
    if isinstance(node, ast.Call):
        given = node.args[0] if node.args else None
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        inner = owner if isinstance(given, ast.Constant) or given is None else given
        copies = inner is not None and last_name(node.func) in _COPIES
        return _ids_of(inner, named) if copies and inner is not None else None
    if isinstance(node, ast.ListComp) and len(node.generators) == 1:
        return _ids_of(node.generators[0].iter, named) if _copies_each(node) else None
    if isinstance(node, ast.Subscript) and isinstance(node.slice, (ast.Slice, ast.Constant)):
        if isinstance(node.slice, ast.Slice) or node.slice.value == 0:
            return _ids_of(node.value, named)
        return node.value if node.slice.value == "input_ids" else None
    is_ids = isinstance(node, ast.Attribute) and node.attr == "input_ids"
    return node.value if is_ids and isinstance(node, ast.Attribute) else None


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
