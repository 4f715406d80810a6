"""How the installed Trainer calls its own methods while it trains: read, never imported."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_doctor.static.installed.environment import installed_tree, package_folder
from lora_doctor.static.python_source import walk

#: Where a training begins, and what it does where an evaluation is due.
_START = "train"
_EVALUATES = ("evaluate", "_evaluate")
#: What a step behind ``self.control.should_log`` waits for; rows of an evaluation have labels.
_DUE = re.compile(r"should_(log|save|evaluate)|has_labels")
#: A platform whose branch no run of ours takes.
_ELSEWHERE = "is_sagemaker"
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+")
_Methods = Mapping[str, ast.FunctionDef]


@dataclass(frozen=True)
class OwnCall:
    """A call of one of its own methods, which no option has to be set for."""

    #: The method that it stands in.
    caller: str
    #: The method.
    method: str
    #: The library's names of what it is given by position.
    positional: tuple[str, ...]
    #: What it is given by name.
    keywords: tuple[str, ...]
    #: Which of ``log``, ``save`` and ``evaluate`` have to be due.
    due: frozenset[str]
    #: File from the package on, and line.
    place: str


def training_calls(replaced: frozenset[str] = frozenset()) -> tuple[OwnCall, ...]:
    """Those that a training with the installed ``Trainer`` makes, where the methods that are
    ``replaced`` are other code; none where transformers is missing."""
    methods = _methods("transformers", "trainer.py", "Trainer")
    found: dict[str, frozenset[str]] = {}
    calls: list[OwnCall] = []
    waiting = [(_START, frozenset[str]())] if _START in methods else []
    while waiting:
        waiting.sort(key=lambda item: len(item[1]), reverse=True)
        method, due = waiting.pop()
        if method in found or method in replaced:
            continue
        found[method] = due
        for node, more in _certain(methods[method]):
            if _own(node) in methods:
                name = _own(node)
                more |= {"evaluate"} if name in _EVALUATES else set()
                waiting.append((name, due | more))
            if isinstance(node, ast.Call):
                calls += _calls(method, node, due | more, methods)
    return tuple(calls)


def file_of_trainer(trainer: str) -> str:
    """Where TRL has a class: ``trainer/grpo_trainer.py`` of ``trl.GRPOTrainer``."""
    words = _WORDS.findall(trainer.rpartition(".")[2])
    return f"trainer/{'_'.join(words).lower()}.py"


@functools.cache
def replaced_by(trainer: str) -> frozenset[str]:
    """Methods of ``Trainer`` in whose place a library's own heir, such as ``trl.GRPOTrainer``, runs
    other code: it defines them and does not call those that it inherits."""
    own = _methods(trainer.partition(".")[0], file_of_trainer(trainer), trainer.rpartition(".")[2])
    return frozenset(one for one, node in own.items() if not calls_inherited(node))


def calls_inherited(node: ast.FunctionDef) -> bool:
    """Whether a method calls the one of the same name that it replaces."""
    return any(
        isinstance(one, ast.Attribute) and one.attr == node.name and isinstance(one.ctx, ast.Load)
        for one in walk(node)
    )


@functools.cache
def _methods(package: str, file: str, name: str) -> _Methods:
    """The methods of a class of an installed package; none where it is not there."""
    folder = package_folder(package)
    tree = installed_tree(folder / file) if folder is not None else None
    if tree is None:
        return {}
    return {
        one.name: one
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == name
        for one in node.body
        if isinstance(one, ast.FunctionDef)
    }


def _certain(method: ast.FunctionDef) -> Iterator[tuple[ast.AST, frozenset[str]]]:
    """What a method runs without an option that asks for it, and what has to be due for that."""
    todo: list[tuple[ast.AST, frozenset[str]]] = [(method, frozenset())]
    while todo:
        node, due = todo.pop()
        yield node, due
        if not isinstance(node, ast.If):
            todo += [(part, due) for part in ast.iter_child_nodes(node)]
        elif asked := list(_DUE.finditer(ast.unparse(node.test))):
            inside = due | {one[1] for one in asked if one[1]}
            todo += [(part, inside) for part in node.body]
        elif ast.unparse(node.test).startswith(_ELSEWHERE):
            todo += [(part, due) for part in node.orelse]


def _calls(
    caller: str, node: ast.Call, due: frozenset[str], methods: _Methods
) -> Iterator[OwnCall]:
    """A call as a call of an own method, and those that it makes of a method that it is handed
    (``sampler_fn=self._get_train_sampler``)."""
    called = methods.get(_own(node.func))
    if called is None:
        return
    yield from _as_call(caller, node, due, called)
    for handed in node.keywords:
        method = methods.get(_own(handed.value))
        if method is not None and handed.arg is not None:
            for other in walk(called):
                if isinstance(other, ast.Call) and getattr(other.func, "id", "") == handed.arg:
                    yield from _as_call(caller, other, due, method)


def _as_call(
    caller: str, node: ast.Call, due: frozenset[str], defined: ast.FunctionDef
) -> Iterator[OwnCall]:
    """The call, unless it unpacks something or gives more than the library's own method takes."""
    parameters = [one.arg for one in (*defined.args.posonlyargs, *defined.args.args)][1:]
    names = [one.arg for one in node.keywords]
    if None in names or any(isinstance(one, ast.Starred) for one in node.args):
        return
    if len(node.args) <= len(parameters):
        place = f"transformers/trainer.py:{node.lineno}"
        given, keywords = tuple(parameters[: len(node.args)]), tuple(map(str, names))
        yield OwnCall(caller, defined.name, given, keywords, due, place)


def _own(node: ast.AST) -> str:
    """``method`` of ``self.method``."""
    own = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self"
    return node.attr if own and isinstance(node, ast.Attribute) else ""
