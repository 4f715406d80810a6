"""Which part of a repository's code loading its model would run: files, and classes.

A repository also holds processors, tokenizers, samples and heads that nobody asked for. What only
these would fail at is not the model's matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from lora_doctor.limits import REPOSITORY_CODE, bounded, step
from lora_doctor.static.model_files import AutoMapTarget
from lora_doctor.static.remote_code.remote_code import RemoteCode, import_file, module_file
from lora_doctor.static.remote_code.source_facts import ClassFacts

_CONFIG = "AutoConfig"


@dataclass(frozen=True)
class LoadedCode:
    """What runs when the config and the model are loaded.

    ``named`` are the files that ``auto_map`` names for them, ``certain`` these and all that they
    import whatever happens, ``possible`` those imported under a condition or in a function.
    ``config_class`` and ``model_class`` are None where the repository does not have them.
    ``classes`` are these two and every class of the repository that they use, directly or not.
    """

    named: frozenset[str]
    certain: frozenset[str]
    possible: frozenset[str]
    config_class: ClassFacts | None
    model_class: ClassFacts | None
    classes: tuple[ClassFacts, ...]

    def uses(self, file: str, class_name: str | None) -> bool:
        """Whether the class of this name in ``file`` is one of ``classes``."""
        return (file, class_name) in self._places

    @cached_property
    def _places(self) -> frozenset[tuple[str, str]]:
        return frozenset((each.at.file, each.name) for each in self.classes)


@bounded(REPOSITORY_CODE)
def loaded_code(
    code: RemoteCode, architectures: Iterable[str], model_class: str | None
) -> LoadedCode:
    """What loading runs; ``model_class`` as in the recipe, an Auto class or a class of the code."""
    targets = _targets(code, tuple(architectures), model_class)
    named = frozenset(
        file for target in targets if (file := module_file(target.module, code.files)) is not None
    )
    certain = _imported(code, named, frozenset({""}))
    possible = _imported(code, named, frozenset({"", "if", "try", "function"})) - certain
    config = code.auto_class(_CONFIG)
    models = [code.auto_class(t.auto_class) for t in targets if t.auto_class != _CONFIG]
    model = next((each for each in models if each is not None), None)
    roots = [each for each in (config, model) if each is not None]
    return LoadedCode(named, certain, possible, config, model, tuple(_used(code, roots)))


def _targets(
    code: RemoteCode, architectures: tuple[str, ...], wanted: str | None
) -> list[AutoMapTarget]:
    """The config's entry of ``auto_map`` and the model's: the one that is asked for, else the one
    that the checkpoint was saved from, else a head before the bare model."""
    own = [target for target in code.auto_map if target.repository is None]
    models = [target for target in own if target.auto_class.startswith("AutoModel")]
    if wanted:
        models = [each for each in models if wanted in (each.auto_class, each.class_name)]
    models.sort(
        key=lambda each: (each.class_name not in architectures, "For" not in each.auto_class)
    )
    return [target for target in own if target.auto_class == _CONFIG] + models[:1]


def _imported(code: RemoteCode, files: frozenset[str], guards: frozenset[str]) -> frozenset[str]:
    todo, reached = list(files), set[str]()
    while todo:
        file = todo.pop()
        if file in reached:
            continue
        reached.add(file)
        for item in code.files[file].imports:
            if item.guard in guards:
                targets = (
                    import_file(file, item, code.files, as_module=way) for way in (False, True)
                )
                todo.extend(target for target in targets if target)
    return frozenset(reached)


def _used(code: RemoteCode, roots: list[ClassFacts]) -> Iterator[ClassFacts]:
    """Every class that is named in a class that is used, through functions and tables too."""
    todo = [(root.at.file, root.name) for root in roots]
    seen: set[tuple[str, str]] = set()
    while todo:
        file, name = todo.pop()
        step()
        for place in _definitions(code, file, name):
            if place in seen:
                continue
            seen.add(place)
            where, head = place
            facts = code.files[where]
            if head in facts.classes:
                yield facts.classes[head]
                names = facts.classes[head].names
            else:
                names = facts.definitions[head]
            todo.extend((where, used) for used in names)


def _definitions(code: RemoteCode, file: str, name: str) -> Iterator[tuple[str, str]]:
    """Classes, functions and variables that ``name`` may mean in ``file``: file and name."""
    found = code.resolve(file, name)
    if isinstance(found, ClassFacts):
        yield found.at.file, found.name
        return
    head, _, rest = name.partition(".")
    facts = code.files[file]
    if head in facts.definitions:
        yield file, head
    for item in facts.imports_that_may_bind(head):
        step()
        wanted = (item.name if item.name != "*" else head) or ""
        for way, inner in ((False, wanted), (True, rest)):
            target = import_file(file, item, code.files, as_module=way)
            if target and inner in code.files[target].definitions:
                yield target, inner
