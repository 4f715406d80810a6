"""The training set and the collator of a program as a description from which another process can
make them again: calls of libraries, plain values, and the code of the program's own functions.

Nothing is run here. What the text does not say ends the description.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_doctor.recipe.program.code_of import code_of, text_of_code
from lora_doctor.recipe.program.objects import text_of, top
from lora_doctor.static.named_file import rows_file
from lora_doctor.static.program.values import (
    Argument,
    Call,
    Class,
    Function,
    Instance,
    Items,
    Known,
    Mapping,
    NotPlainError,
    Reference,
    Scope,
    Thing,
    Unknown,
    Value,
)

#: A description: always an object with the key ``is``.
Node = dict[str, Any]
#: Packages whose calls can be made again; the other process knows which of them it makes.
_PACKAGES = ("datasets", "transformers", "trl", "torch", "functools")
#: Calls that read a text file.
_FILES = ("builtins.open", "json.load", "json.loads", "csv.DictReader")
#: Methods that change a set in place.
_IN_PLACE = frozenset({"set_format", "reset_format", "set_transform"})
#: Keys of a dictionary that were numbers or constants, as far as their text tells.
_NO_TEXT = re.compile(r"-?\d[\d._e]*|True|False|None")
#: Kinds of descriptions of what a function may change where it stands.
_CHANGEABLE = frozenset({"list", "set", "dict", "object"})
_DEEPEST = 40
_MOST_NODES = 20_000
#: Arguments about how, or where, something is done, and not what is made.
_ASIDE = frozenset(
    {"num_proc", "load_from_cache_file", "cache_dir", "desc", "cache_file_name",
     "cache_file_names", "keep_in_memory", "writer_batch_size", "token", "use_auth_token",
     "trust_remote_code", "local_files_only", "revision", "new_fingerprint", "verification_mode"}
)  # fmt: skip


@dataclass
class Describer:
    """Describes values of one program.

    ``tokenizer`` and ``model``: the values that stand for the tokenizer and the model of the run,
    which the other process has of its own. ``folder``: where the program is.
    """

    calls: Sequence[Call]
    tokenizer: Value | None
    model: Value | None
    folder: Path
    #: Local files that are read, in the order in which they were met.
    files: list[Path] = field(default_factory=list)
    #: Number of the call for which a value is described: later ones have not changed it.
    _before: int = 1 << 62
    _count: int = 0
    _open: list[int] = field(default_factory=list)
    _stores: dict[int, dict[str, int]] = field(default_factory=dict)
    #: By the identity of what functions may change, its number: it is one object for all of them.
    _numbers: dict[int, int] = field(default_factory=dict)
    _kept: list[Value | None] = field(default_factory=list)

    def node(self, value: Value | None) -> Node:
        """The description of a value.

        Raises:
            NotPlainError: the text does not say all of it.
        """
        self._count += 1
        if self._count > _MOST_NODES or len(self._open) > _DEEPEST:
            raise NotPlainError(value)
        if value is not None and value is self.tokenizer:
            return {"is": "tokenizer"}
        if value is not None and value is self.model:
            return {"is": "model"}
        if id(value) in self._open:
            raise NotPlainError(value)  # a function that calls itself
        self._open.append(id(value))
        try:
            found = self._of(value)
        finally:
            self._open.pop()
        if found["is"] in _CHANGEABLE:
            self._kept.append(value)  # so that no other gets its identity
            found["same"] = self._numbers.setdefault(_identity(value), len(self._numbers))
        return found

    def _of(self, value: Value | None) -> Node:
        if value is None:
            return {"is": "plain", "value": None}
        if isinstance(value, Known) and isinstance(
            value.value, (str, int, float, bool, type(None))
        ):
            return {"is": "plain", "value": value.value}
        if isinstance(value, Items) and value.open is None:
            return {"is": value.kind, "items": [self.node(item) for item in value.items]}
        if isinstance(value, Mapping) and value.open is None:
            return self._mapping(value)
        if isinstance(value, Reference):
            return {"is": "name", "name": value.name}
        if isinstance(value, Function):
            return self._function(value)
        if isinstance(value, Instance):
            return self._instance(value)
        if isinstance(value, Thing):
            return self._thing(value)
        if isinstance(value, Unknown) and value.part is not None:
            part = value.part
            found = {"is": "part", "of": self.node(part.owner), "name": part.name,
                     "attribute": part.attribute}  # fmt: skip
            return self._changed(found, value)
        raise NotPlainError(value)

    def _mapping(self, value: Mapping) -> Node:
        for name in value.entries:
            spans = value.spans.get(name)
            quoted = spans is not None and spans[1].text.lstrip()[:1] in "\"'"
            if not quoted and _NO_TEXT.fullmatch(name):
                raise NotPlainError(value)  # the key is kept as a text, whatever it was
        entries = {name: self.node(one) for name, one in value.entries.items()}
        return {"is": "dict", "entries": entries}

    def _thing(self, value: Thing) -> Node:
        call = value.call
        if not call.certain or call.open is not None or call.heir is not None or value.attributes:
            raise NotPlainError(value)
        found: Node = {"is": "call", "name": call.name, "line": call.place.line}
        if call.receiver is not None:
            kept, self._before = self._before, call.number
            found["of"] = self.node(call.receiver)
            self._before = kept
            found["name"] = call.method
        elif top(call.name) not in _PACKAGES and call.name not in _FILES:
            raise NotPlainError(value)
        found["given"] = [self.node(one.value) for one in call.positional]
        found["named"] = self._named(call.keywords)
        if call.method == "load_dataset":
            found["files"] = self._files(call)
        elif call.method.startswith("from_") and call.name.startswith("datasets.Dataset."):
            paths = call.value("path_or_paths", 0)
            if call.method not in ("from_list", "from_dict"):
                found["files"] = self._file(paths) if paths is not None else self.node(None)
        return self._changed(found, value)

    def _named(self, keywords: AnyMapping[str, Argument]) -> dict[str, Node]:
        return {name: self.node(one.value) for name, one in keywords.items() if name not in _ASIDE}

    def _files(self, call: Call) -> Node:
        """``data_files`` with the paths of the files that lie here."""
        given = call.value("data_files")
        if given is None or set(call.keywords) - {"path", "data_files", "split", *_ASIDE}:
            raise NotPlainError(given)
        if isinstance(given, Mapping) and given.open is None:
            entries = {name: self._file(one) for name, one in given.entries.items()}
            return {"is": "dict", "entries": entries}
        return self._file(given)

    def _file(self, value: Value) -> Node:
        if isinstance(value, Items) and value.open is None:
            return {"is": "list", "items": [self._file(one) for one in value.items]}
        named = text_of(value)
        found = rows_file(named, (Path(), self.folder)) if named is not None else None
        if found is None:
            raise NotPlainError(value)
        self.files.append(found.resolve())
        return {"is": "plain", "value": str(found.resolve())}

    def _changed(self, found: Node, value: Thing | Unknown) -> Node:
        """With the calls that change it in place; whatever else may change it is not followed."""
        for call in self.calls:
            changes = call.method in _IN_PLACE and call.number < self._before
            if not changes or not _is_one(call.receiver, value):
                continue
            if not call.certain or call.open is not None:
                raise NotPlainError(value)
            found = {"is": "changed", "of": found, "name": call.method, "line": call.place.line,
                     "given": [self.node(one.value) for one in call.positional],
                     "named": self._named(call.keywords)}  # fmt: skip
        return found

    def _function(self, value: Function) -> Node:
        code = code_of(value)
        if code is None or isinstance(code, ast.AsyncFunctionDef):
            raise NotPlainError(value)
        if isinstance(code, ast.FunctionDef) and code.decorator_list:
            raise NotPlainError(value)
        names: dict[str, Node] = {}
        for name in sorted(_free_names(code)):
            names.update(self._free(name, value.scope, value))
        start = value.unit.place_at(value.unit.span(value.node).start)
        found: Node = {"is": "function", "code": text_of_code(value), "names": names,
                       "line": start.line or 0}  # fmt: skip
        if value.owner is not None:
            found["owner"] = self.node(value.owner)
        return found

    def _free(self, name: str, scope: Scope, function: Function) -> dict[str, Node]:
        """What a name of a function's stands for; nothing for builtins, which it may not need."""
        found = scope.find(name)
        if found is None:
            return {}
        steady = isinstance(found, (Function, Class, Reference)) or found is self.tokenizer
        if not steady and self._is_set_again(name, function):
            return {name: {"is": "unknown"}}
        try:
            return {name: self.node(found)}
        except NotPlainError:
            return {name: {"is": "unknown"}}  # it may stand in a branch that is not taken

    def _is_set_again(self, name: str, function: Function) -> bool:
        """Whether the file gives a name several values: which one the function reads depends on
        when it is called."""
        unit = function.unit
        if id(unit) not in self._stores:
            counts: dict[str, int] = {}
            for node in ast.walk(ast.parse(unit.python)):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    counts[node.id] = counts.get(node.id, 0) + 1
            self._stores[id(unit)] = counts
        return self._stores[id(unit)].get(name, 0) > 1

    def _instance(self, value: Instance) -> Node:
        """An object of a class of the program's: what is set on it, its methods, and what its
        constructor was given."""
        found: Node = {"is": "object", "attributes": self._attributes(value.attributes),
                       "methods": {}, "class": ""}  # fmt: skip
        if value.of is None:
            return found
        found["class"] = value.of.name
        found["methods"] = {
            name: self._function(one)
            for name, one in _methods(value.of).items()
            # what a decorator makes of a method is not known; without it nothing reaches it
            if name == "__init__" or not getattr(one.node, "decorators", ())
        }
        if value.made is not None:
            given, named = value.made
            found["given"] = [self.node(one.value) for one in given]
            found["named"] = {name: self.node(one.value) for name, one in named.items()}
        return found

    def _attributes(self, attributes: AnyMapping[str, Value]) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for name, one in attributes.items():
            try:
                found[name] = self.node(one)
            except NotPlainError:
                found[name] = {"is": "unknown"}
        return found


def _identity(value: Value | None) -> int:
    """The same for the value wherever a name of it is read."""
    if isinstance(value, Items):
        return id(value.items)
    if isinstance(value, Mapping):
        return id(value.entries)
    return id(value.attributes if isinstance(value, Instance) else value)


def _methods(of: Class) -> dict[str, Function]:
    """Methods of a class whose bases are the program's own, or a set of torch."""
    found: dict[str, Function] = {}
    for base in reversed(of.bases):
        if isinstance(base, Class) and base is not of:
            found.update(_methods(base))
        elif not isinstance(base, Reference) or not base.name.endswith(
            ("torch.utils.data.Dataset", "torch.utils.data.dataset.Dataset", "object")
        ):
            raise NotPlainError(None)
    found.update({name: one for name, one in of.names.items() if isinstance(one, Function)})
    return found


def _is_one(one: Value | None, other: Thing | Unknown) -> bool:
    """Whether two values are the same object of a library's."""
    if one is other:
        return True
    if isinstance(one, Unknown) and isinstance(other, Unknown):
        first, second = one.part, other.part
        return (
            first is not None and second is not None and first.name == second.name
            and isinstance(second.owner, (Thing, Unknown)) and _is_one(first.owner, second.owner)
        )  # fmt: skip
    return False


def _free_names(code: ast.FunctionDef | ast.Lambda) -> set[str]:
    """Names that a function reads and does not bind."""
    read: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef) and node is not code:
            bound.add(node.name)
    return read - bound
