"""The facts that are kept of one Python file; `source_reader` finds them.

A fact is where something stands and what it says, never a judgement: rules judge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Place:
    """A line of a file of the repository; lines count from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Import:
    """One imported name: `from module import name as alias`, or `import module` (name None).

    `level` counts the dots of a relative import. `guard` tells when it runs: "" always, when the
    file is loaded; "try" where a failure is caught; "if" under a condition; "function" when that
    is called; "typing" never. (transformers requires packages of "" and "function" alike.)
    `class_name` and `at_init` tell of which class the function is a method, and whether it runs
    while an object of that is built.
    """

    at: Place
    module: str
    name: str | None
    alias: str
    level: int
    guard: str
    class_name: str | None = None
    at_init: bool = False


@dataclass(frozen=True)
class Parameter:
    """A parameter of a `forward`; `kind` is `plain`, `keyword`, `*` or `**`."""

    name: str
    kind: str
    has_default: bool


@dataclass(frozen=True)
class ClassFacts:
    """One class. `bases` are as written, dotted; `forward` is None where the class has none.

    `assigned` maps what its methods assign to `self`, and its `self` methods' names, to the dotted
    callees of these assignments: `self.model = SomeModel(config)` gives {"model": ("SomeModel",)}.
    `tied_keys` is the form of `_tied_weights_keys`: `list`, `dict`, `other`, or None.
    `before_super` are the attributes of `self` that `__init__` assigns before it calls the
    `__init__` of the base class. `names` are all names that the class uses, dotted where they are.
    """

    name: str
    at: Place
    bases: tuple[str, ...]
    methods: tuple[str, ...]
    attributes: tuple[str, ...]
    forward: tuple[Parameter, ...] | None
    assigned: dict[str, tuple[str, ...]]
    tied_keys: tuple[str, Place] | None
    before_super: frozenset[str]
    names: frozenset[str]


@dataclass(frozen=True)
class AdapterCall:
    """A call of `get_peft_model`.

    `model` is what is wrapped, as written (`self.model`). `callees` are the classes that this was
    made of where the same function says so. `task_type` is the one of the config; None with
    `task_type_known` means that it has none, without it that it could not be read.
    `at_init` tells whether it happens while the object is built; `conditional` whether only under
    some condition.
    """

    at: Place
    class_name: str | None
    method: str | None
    model: str
    callees: tuple[str, ...]
    task_type: str | None
    task_type_known: bool
    at_init: bool
    conditional: bool


@dataclass(frozen=True)
class ConfigRequirement:
    """A config attribute without which the code raises: `assert getattr(config, "x", None)`."""

    at: Place
    attribute: str
    class_name: str | None


@dataclass(frozen=True)
class ConfigRead:
    """`config.attribute["key"]` (`strict`: fails without the key) or `config.attribute.get("key")`.

    `config` stands for whatever object is called so, or for `self` in a config class.
    `class_name` is where it stands, `at_init` whether it runs while an object of that is built.
    `conditional`: only under a condition on something else than this attribute; whether the
    attribute is None, is a dictionary or is there counts as no condition.
    """

    at: Place
    attribute: str
    key: str
    strict: bool
    class_name: str | None
    at_init: bool
    conditional: bool


@dataclass(frozen=True)
class SourceFacts:
    """All facts about one file.

    `dotted_uses` are names reached through imported modules. `definitions` maps the functions and
    variables of the module to the names that they use: `CLASSES = {"sdpa": SdpaAttention}`.
    """

    file: str
    classes: dict[str, ClassFacts]
    imports: tuple[Import, ...]
    adapter_calls: tuple[AdapterCall, ...]
    requirements: tuple[ConfigRequirement, ...]
    config_reads: tuple[ConfigRead, ...]
    dotted_uses: tuple[tuple[str, Place], ...]
    definitions: dict[str, frozenset[str]]

    @cached_property
    def imports_by_alias(self) -> dict[str, Import]:
        """The last import that binds each name."""
        return {item.alias: item for item in self.imports}

    @cached_property
    def star_imports(self) -> tuple[Import, ...]:
        """`from x import *`."""
        return tuple(item for item in self.imports if item.name == "*")

    @cached_property
    def _imports_by_word(self) -> dict[str, list[Import]]:
        found: defaultdict[str, list[Import]] = defaultdict(list)
        for item in self.imports:
            for word in {item.alias, item.name} - {None, "*"}:
                found[str(word)].append(item)
        return dict(found)

    def imports_that_may_bind(self, word: str) -> Iterator[Import]:
        """Imports that have `word` as their name or alias, and star imports."""
        yield from self._imports_by_word.get(word, ())
        yield from self.star_imports
