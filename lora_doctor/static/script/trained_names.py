"""What a module calls the model that it trains: read with ``ast``, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from lora_doctor.static.python_source import FUNCTIONS, Function, last_name, unparse, walk

#: Calls that hand back the model that they are given, or a wrapper around it.
_SAME = frozenset(
    {"prepare", "setup", "setup_module", "DistributedDataParallel", "DDP", "DataParallel", "FSDP",
     "FullyShardedDataParallel", "compile", "to", "cuda", "float", "half", "bfloat16", "train"}
)  # fmt: skip


def trained_names(tree: ast.Module) -> frozenset[str]:
    """The names of the model that gets adapters, and those that it has in the functions that it is
    given to; empty where no adapters are put on it here."""
    nodes = list(walk(tree))
    functions = {node.name: node for node in nodes if isinstance(node, FUNCTIONS)}
    found: set[str] = set()
    size = -1
    while size != len(found):
        size = len(found)
        for node in nodes:
            if isinstance(node, ast.Assign):
                found.update(_bound(node, functions, found))
            elif isinstance(node, ast.Call):
                found.update(_parameters(node, functions, found))
    return frozenset(found)


def given_names(call: ast.Call, function: Function) -> dict[str, str]:
    """The parameters of a function that a call fills, each with the text of its argument."""
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    given = {name: unparse(one) for name, one in zip(names, call.args, strict=False)}
    given.update({one.arg: unparse(one.value) for one in call.keywords if one.arg})
    return given


def _bound(node: ast.Assign, functions: dict[str, Function], found: set[str]) -> Iterator[str]:
    for target in node.targets:
        if isinstance(target, ast.Tuple):
            given = node.value.args if isinstance(node.value, ast.Call) else []
            pairs = zip(target.elts, given, strict=False) if _is_same(node.value) else ()
            yield from (unparse(name) for name, one in pairs if unparse(one) in found)
        elif _is_trained(node.value, functions, found):
            yield unparse(target)


def _is_same(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and last_name(value.func) in _SAME


def _is_trained(value: ast.expr, functions: dict[str, Function], found: set[str]) -> bool:
    """Whether an expression is the model with its adapters."""
    if not isinstance(value, ast.Call):
        return unparse(value) in found
    name = last_name(value.func)
    owner = unparse(value.func.value) if isinstance(value.func, ast.Attribute) else ""
    if name == "get_peft_model" or (name == "from_pretrained" and "Peft" in owner):
        return True
    if _is_same(value):
        return owner in found or any(unparse(one) in found for one in value.args)
    returned = walk(functions[name]) if name in functions else ()
    return any(
        isinstance(node, ast.Return)
        and node.value is not None
        and (unparse(node.value) in found or "get_peft_model(" in unparse(node.value))
        for node in returned
    )


def _parameters(call: ast.Call, functions: dict[str, Function], found: set[str]) -> Iterator[str]:
    function = functions.get(last_name(call.func))
    if function is not None and isinstance(call.func, ast.Name):
        given = given_names(call, function)
        yield from (name for name, text in given.items() if text in found)
