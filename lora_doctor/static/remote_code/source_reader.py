"""Read the facts of one Python file with `ast`. Nothing is imported, nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lora_doctor.static.python_source import unparse, walk
from lora_doctor.static.remote_code.source_facts import (
    AdapterCall,
    ClassFacts,
    ConfigRead,
    ConfigRequirement,
    Import,
    Parameter,
    Place,
    SourceFacts,
)
from lora_doctor.static.remote_code.source_readings import (
    aliases_in,
    asks_something_else,
    assignments,
    callee,
    callees_of,
    conditions_in,
    dotted,
    is_config,
    is_none,
    names,
    own_expressions,
    task_type_of,
    unsubscripted,
)


def read_facts(tree: ast.Module, file: str) -> SourceFacts:
    """The facts in a parsed file. RecursionError where it is nested beyond reason."""
    reader = _Reader(file)
    reader.body(tree.body, _Scope())
    return SourceFacts(
        file=file,
        classes=reader.classes,
        imports=tuple(reader.imports),
        adapter_calls=tuple(reader.adapter_calls),
        requirements=tuple(reader.requirements),
        config_reads=tuple(reader.config_reads),
        dotted_uses=tuple(dict.fromkeys(reader.uses)),
        definitions=reader.definitions,
    )


@dataclass(frozen=True)
class _Scope:
    """Where a statement stands: in which class and function, behind which guard."""

    class_node: ast.ClassDef | None = None
    function: ast.FunctionDef | ast.AsyncFunctionDef | None = None
    guard: str = ""
    conditional: bool = False
    conditions: tuple[ast.expr, ...] = ()
    #: Methods of the class that run while an object of it is built.
    init_methods: frozenset[str] = frozenset()

    def with_guard(self, guard: str, test: ast.expr | None = None) -> _Scope:
        # The most forgiving guard counts: what is under `try` may fail wherever it stands.
        order = ["", "function", "if", "try", "typing"]
        strongest = max(self.guard, guard, key=order.index)
        conditional = self.conditional or guard in ("if", "try")
        conditions = self.conditions if test is None else (*self.conditions, test)
        return replace(self, guard=strongest, conditional=conditional, conditions=conditions)

    def inside(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> _Scope:
        """The scope of a function's body; one in a method belongs to the method."""
        outer = self.function if self.class_node and self.function else function
        inner = _Scope(self.class_node, outer, self.guard, init_methods=self.init_methods)
        return inner.with_guard("function")

    @property
    def class_name(self) -> str | None:
        return self.class_node.name if self.class_node else None

    @property
    def at_init(self) -> bool:
        """Whether it runs while an object of the class is built."""
        return self.function is not None and self.function.name in self.init_methods


class _Reader:
    """Walks the statements of a file with their scope, and collects facts."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.classes: dict[str, ClassFacts] = {}
        self.imports: list[Import] = []
        self.adapter_calls: list[AdapterCall] = []
        self.requirements: list[ConfigRequirement] = []
        self.config_reads: list[ConfigRead] = []
        self.uses: list[tuple[str, Place]] = []
        self.definitions: dict[str, frozenset[str]] = {}
        self._aliases: dict[ast.AST, dict[str, ast.Attribute]] = {}
        self.wrappers = {"get_peft_model", "peft.get_peft_model"}

    def at(self, node: ast.stmt | ast.expr) -> Place:
        return Place(self.file, node.lineno)

    def body(self, statements: list[ast.stmt], scope: _Scope) -> None:
        for statement in statements:
            self.statement(statement, scope)

    def statement(self, node: ast.stmt, scope: _Scope) -> None:
        if scope.class_node is None and scope.function is None:
            self.defined(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self.imported(node, scope)
        elif isinstance(node, ast.ClassDef):
            self.classes.setdefault(node.name, _class_facts(node, self.file))
            self.read_values(node, scope)
            inner = _Scope(node, None, scope.guard, init_methods=_methods_at_init(node))
            self.body(node.body, inner)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = scope.inside(node)
            self.read_values(node, inner)
            self.body(node.body, inner)
        elif isinstance(node, ast.If):
            self.branches(node, scope)
        elif isinstance(node, ast.Try):
            self.attempted(node, scope)
        else:
            if isinstance(node, ast.Assert):
                self.required(node.test, node, scope)
            self.read_values(node, scope)
            for name in ("body", "orelse"):
                self.body(getattr(node, name, []), scope)
            for case in getattr(node, "cases", []):
                self.body(case.body, scope.with_guard("if"))

    def branches(self, node: ast.If, scope: _Scope) -> None:
        """`if x_available(): import x else: raise` is as forgiving as try; and so on."""
        self.required_by_raise(node, scope)
        self.read_values(node, scope)
        typing = (dotted(node.test) or "").endswith("TYPE_CHECKING")
        self.body(node.body, scope.with_guard("typing" if typing else "if", node.test))
        self.body(node.orelse, scope.with_guard("if", node.test))

    def attempted(self, node: ast.Try, scope: _Scope) -> None:
        """What may raise is forgiven where something catches it."""
        self.body(node.body, scope.with_guard("try" if node.handlers else ""))
        for handler in node.handlers:
            self.body(handler.body, scope.with_guard("try"))
        self.body(node.orelse, scope.with_guard("try"))
        self.body(node.finalbody, scope)

    def defined(self, node: ast.stmt) -> None:
        """A function or variable of the module, with the names that it uses."""
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self.definitions[node.name] = names(node)
        for target, value in assignments(node):
            if isinstance(target, ast.Name) and value is not None:
                self.definitions[target.id] = names(value)

    # --- imports ---

    def imported(self, node: ast.Import | ast.ImportFrom, scope: _Scope) -> None:
        level = node.level if isinstance(node, ast.ImportFrom) else 0
        for item in node.names:
            if isinstance(node, ast.ImportFrom):
                module, name, alias = node.module or "", item.name, item.asname or item.name
                if module.split(".")[0] == "peft" and name == "get_peft_model":
                    self.wrappers.add(alias)
            else:
                # `import a.b` binds `a`; `import a.b as c` binds `c` to a.b.
                module, name = item.name, None
                alias = item.asname or item.name.split(".")[0]
                if module == "peft":
                    self.wrappers.add(f"{alias}.get_peft_model")
            self.imports.append(
                Import(
                    self.at(node), module, name, alias, level, scope.guard,
                    scope.class_name, scope.at_init,
                )
            )  # fmt: skip

    # --- expressions ---

    def read_values(self, node: ast.stmt, scope: _Scope) -> None:
        """Facts in the expressions of one statement, those of statements inside it left out."""
        for value in own_expressions(node):
            inner: set[ast.AST] = set()
            for each in walk(value):
                if isinstance(each, ast.Attribute) and each not in inner:
                    name = dotted(each)
                    if name:
                        self.uses.append((name, self.at(each)))
                    inner.add(each.value)
                elif isinstance(each, ast.Attribute):
                    inner.add(each.value)
                if isinstance(each, ast.Call) and dotted(each.func) in self.wrappers:
                    self.adapter_calls.append(self.adapter_call(each, scope))
                read = self.config_read(each, scope, value)
                if read:
                    self.config_reads.append(read)

    def aliases(self, function: ast.AST) -> dict[str, ast.Attribute]:
        """`aliases_in` the function, which is asked for at each subscript in it."""
        if function not in self._aliases:
            self._aliases[function] = aliases_in(function)
        return self._aliases[function]

    def config_read(self, node: ast.AST, scope: _Scope, within: ast.expr) -> ConfigRead | None:
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            target, key, strict = node.value, node.slice, True
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("get", "pop")
            and node.args
        ):
            target, key, strict = node.func.value, node.args[0], False
        else:
            return None
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            return None
        alias = ""
        if isinstance(target, ast.Name) and scope.function is not None:
            alias = target.id
            target = self.aliases(scope.function).get(alias, target)
        if not isinstance(target, ast.Attribute) or not is_config(target.value, scope.class_node):
            return None
        conditions = (*scope.conditions, *conditions_in(within, node))
        other = any(asks_something_else(test, target.attr, alias) for test in conditions)
        return ConfigRead(
            self.at(node), target.attr, key.value, strict, scope.class_name, scope.at_init, other
        )

    def adapter_call(self, node: ast.Call, scope: _Scope) -> AdapterCall:
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        model = node.args[0] if node.args else keywords.get("model")
        config = node.args[1] if len(node.args) > 1 else keywords.get("peft_config")
        task_type, known = task_type_of(config, scope.function, node.lineno)
        method = scope.function.name if scope.function else None
        name = dotted(model) or (unparse(model) if model else "")
        callees: tuple[str, ...] = ()
        if isinstance(model, ast.Call):
            callees = callee(model)
        elif isinstance(model, ast.Name) and scope.function is not None:
            callees = callees_of(model.id, scope.function, node.lineno)
        return AdapterCall(
            at=self.at(node),
            class_name=scope.class_node.name if scope.class_node else None,
            method=method,
            model=name,
            callees=callees,
            task_type=task_type,
            task_type_known=known,
            at_init=scope.at_init,
            conditional=scope.conditional,
        )

    # --- requirements ---

    def required_by_raise(self, node: ast.If, scope: _Scope) -> None:
        """`if not hasattr(config, "x"): raise …` and its like."""
        if node.body and isinstance(node.body[0], ast.Raise):
            test = node.test
            absent = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
            is_none = (
                isinstance(test, ast.Compare)
                and isinstance(test.ops[0], ast.Is)
                and isinstance(test.comparators[0], ast.Constant)
                and test.comparators[0].value is None
            )
            if absent or is_none:
                self.required(test, node, scope)

    def required(self, test: ast.expr, node: ast.stmt, scope: _Scope) -> None:
        found: dict[str, None] = {}
        for each in walk(test):
            if (
                isinstance(each, ast.Call)
                and dotted(each.func) in ("getattr", "hasattr")
                and len(each.args) >= 2
                and is_config(each.args[0], scope.class_node)
                and isinstance(each.args[1], ast.Constant)
                and isinstance(each.args[1].value, str)
            ):
                found[each.args[1].value] = None
            elif isinstance(each, ast.Attribute) and is_config(each.value, scope.class_node):
                found[each.attr] = None
        for attribute in found:
            name = scope.class_node.name if scope.class_node else None
            self.requirements.append(ConfigRequirement(self.at(node), attribute, name))


# --- classes --------------------------------------------------------------------------------


def _class_facts(node: ast.ClassDef, file: str) -> ClassFacts:
    methods = {
        m.name: m for m in node.body if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    attributes: list[str] = []
    tied: tuple[str, Place] | None = None
    for statement in node.body:
        for name, value in assignments(statement):
            if not isinstance(name, ast.Name):
                continue
            attributes.append(name.id)
            if name.id == "_tied_weights_keys" and not is_none(value):
                tied = (_form(value), Place(file, statement.lineno))
    assigned: dict[str, list[str]] = {}
    for method in methods.values():
        for part in walk(method):
            for target, value in assignments(part):
                if (
                    isinstance(target, ast.Attribute)
                    and isinstance(target.value, ast.Name)
                    and target.value.id == "self"
                ):
                    assigned.setdefault(target.attr, []).extend(callee(value))
    forward, init = methods.get("forward"), methods.get("__init__")
    return ClassFacts(
        name=node.name,
        at=Place(file, node.lineno),
        bases=tuple(text for base in node.bases if (text := dotted(unsubscripted(base)))),
        methods=tuple(methods),
        attributes=tuple(attributes),
        forward=None if forward is None else tuple(_parameters(forward.args)),
        assigned={name: tuple(dict.fromkeys(each)) for name, each in assigned.items() if each},
        tied_keys=tied,
        before_super=frozenset() if init is None else _before_super(init),
        names=names(node),
    )


def _parameters(arguments: ast.arguments) -> Iterator[Parameter]:
    """The parameters after `self`."""
    plain = [*arguments.posonlyargs, *arguments.args]
    without = len(plain) - len(arguments.defaults)
    for index, argument in enumerate(plain):
        if index or argument.arg != "self":
            yield Parameter(argument.arg, "plain", index >= without)
    if arguments.vararg:
        yield Parameter(arguments.vararg.arg, "*", True)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield Parameter(argument.arg, "keyword", default is not None)
    if arguments.kwarg:
        yield Parameter(arguments.kwarg.arg, "**", True)


def _methods_at_init(node: ast.ClassDef) -> frozenset[str]:
    """`__init__` and the methods of the class that it calls, directly or through others."""
    calls: dict[str, set[str]] = {}
    for method in node.body:
        if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
            calls[method.name] = {
                name.removeprefix("self.")
                for each in walk(method)
                if isinstance(each, ast.Call) and (name := dotted(each.func) or "")[:5] == "self."
            }
    reached: set[str] = set()
    todo = ["__init__"]
    while todo:
        name = todo.pop()
        if name in calls and name not in reached:
            reached.add(name)
            todo.extend(calls[name])
    return frozenset(reached)


def _before_super(init: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    """Attributes of `self` that `__init__` assigns before it calls the base's `__init__`."""
    calls = [
        node.lineno
        for node in walk(init)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "__init__"
    ]
    last = min(calls, default=init.end_lineno or init.lineno)
    return frozenset(
        target.attr
        for node in walk(init)
        for target, _ in assignments(node)
        if isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
        and target.lineno < last
    )


def _form(value: ast.expr | None) -> str:
    if isinstance(value, (ast.List, ast.Tuple, ast.ListComp)):
        return "list"
    return "dict" if isinstance(value, (ast.Dict, ast.DictComp)) else "other"
