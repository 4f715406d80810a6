"""Small readings of syntax trees, for `source_reader`."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from lora_doctor.limits import step
from lora_doctor.static.python_source import walk

# Names of base classes that make `self` a config: `self.rope_scaling["type"]` reads a config value.
_CONFIG_SUFFIX = "config"


def dotted(node: ast.expr | None) -> str | None:
    """`a.b.c` for a name or a chain of attributes, None for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    step(len(parts))
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])


def names(node: ast.AST) -> frozenset[str]:
    """All names under a node, dotted where they are."""
    found = (dotted(each) for each in walk(node) if isinstance(each, (ast.Name, ast.Attribute)))
    return frozenset(name for name in found if name)


def own_expressions(node: ast.stmt) -> Iterator[ast.expr]:
    """The expressions of a statement, without those of the statements in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield child
        elif isinstance(child, (ast.arguments, ast.withitem, ast.keyword)):
            yield from (each for each in ast.iter_child_nodes(child) if isinstance(each, ast.expr))


def assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Targets and values of an assignment, in every form."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield target, node.value
    elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
        yield node.target, node.value


def callee(value: ast.expr | None) -> tuple[str, ...]:
    """The class that a call makes: `C` for `C(…)`, `C.from_pretrained(…)`, `C._from_config(…)`.

    Both classes of `A(…) if x else B(…)`.
    """
    if isinstance(value, ast.IfExp):
        return callee(value.body) + callee(value.orelse)
    if not isinstance(value, ast.Call):
        return ()
    name = dotted(value.func)
    if name is None:
        return ()
    head, _, last = name.rpartition(".")
    return (
        (head,) if head and last in ("from_pretrained", "from_config", "_from_config") else (name,)
    )


def callees_of(name: str, function: ast.AST, line: int) -> tuple[str, ...]:
    """The classes that the variable `name` was made of in `function`, before `line`."""
    found: list[str] = []
    for node in walk(function):
        for target, value in assignments(node):
            if isinstance(target, ast.Name) and target.id == name and target.lineno < line:
                found.extend(callee(value) or ([dotted(value) or ""] if value else []))
    return tuple(dict.fromkeys(each for each in found if each))


def aliases_in(function: ast.AST) -> dict[str, ast.Attribute]:
    """The attributes that variables stand for, by the first that is assigned to each:
    `scaling = config.rope_scaling`."""
    first: dict[str, ast.expr | None] = {}
    for node in walk(function):
        for target, value in assignments(node):
            if isinstance(target, ast.Name):
                first.setdefault(target.id, value)
    return {name: value for name, value in first.items() if isinstance(value, ast.Attribute)}


def conditions_in(within: ast.expr, node: ast.AST) -> Iterator[ast.expr]:
    """The conditions in an expression under which a part of it is evaluated."""
    for each in walk(within):
        if isinstance(each, ast.IfExp) and any(
            _holds(branch, node) for branch in (each.body, each.orelse)
        ):
            yield each.test
        elif isinstance(each, ast.BoolOp):
            at = next((i for i, value in enumerate(each.values) if _holds(value, node)), 0)
            yield from each.values[:at]


def _holds(branch: ast.AST, node: ast.AST) -> bool:
    return any(each is node for each in walk(branch))


_NEUTRAL = {"hasattr", "getattr", "isinstance", "dict", "len", "bool"}


def asks_something_else(test: ast.expr, attribute: str, alias: str) -> bool:
    """Whether a condition is on more than the presence of this attribute of the config."""
    if isinstance(test, ast.Compare) and any(
        not (isinstance(item, ast.Constant) and item.value is None) for item in test.comparators
    ):
        return True
    inner = {id(each.value) for each in walk(test) if isinstance(each, ast.Attribute)}
    for each in walk(test):
        if not isinstance(each, (ast.Name, ast.Attribute)) or id(each) in inner:
            continue
        name = (dotted(each) or "?").rpartition(".")[2]
        if name not in (attribute, alias, *_NEUTRAL) and not name.lower().endswith(_CONFIG_SUFFIX):
            return True
    return False


def is_config(node: ast.expr, class_node: ast.ClassDef | None) -> bool:
    """Whether the expression is called a config, or is `self` in a config class."""
    name = dotted(node)
    if name is None:
        return False
    if name == "self" and class_node is not None:
        step(len(class_node.bases))
        bases = (dotted(base) or "" for base in class_node.bases)
        return any(base.lower().endswith(_CONFIG_SUFFIX) for base in bases)
    return name.rpartition(".")[2].lower().endswith(_CONFIG_SUFFIX)


def task_type_of(
    config: ast.expr | None, function: ast.AST | None, line: int
) -> tuple[str | None, bool]:
    """The task type of a PEFT config, and whether it could be read."""
    if isinstance(config, (ast.Name, ast.Attribute)) and function is not None:
        name = dotted(config)
        latest: ast.expr | None = None
        for node in walk(function):
            for target, value in assignments(node):
                if dotted(target) == name and target.lineno <= line:
                    latest = value
        config = latest
    if not isinstance(config, ast.Call):
        return None, False
    for keyword in config.keywords:
        if keyword.arg is None:
            return None, False  # LoraConfig(**settings)
        if keyword.arg == "task_type":
            value = keyword.value
            if isinstance(value, ast.Constant):
                return (str(value.value) if value.value is not None else None), True
            last = (dotted(value) or "").rpartition(".")[2]  # TaskType.CAUSAL_LM
            return (last, True) if last.isupper() else (None, False)
    return None, True


def unsubscripted(node: ast.expr) -> ast.expr:
    """`Base` for `Base[T]`."""
    return node.value if isinstance(node, ast.Subscript) else node


def is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)
