"""The Python code that a model repository brings, read with `ast` and never imported.

`read_remote_code` parses the files and ties them together: which file an import means, which class
a name means, what a class inherits, within the repository and into the installed transformers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import (
    PYTHON_BYTES,
    REPOSITORY_CODE,
    REPOSITORY_CODE_BYTES,
    REPOSITORY_CODE_FILES,
    REPOSITORY_CODE_TOKENS,
    REPOSITORY_IMPORTS,
    bounded,
    check_items,
    step,
)
from lora_doctor.static.installed.installed_classes import installed_class_has
from lora_doctor.static.model_files import AutoMapTarget, StaticEvidence
from lora_doctor.static.piece import inside, read_bytes
from lora_doctor.static.python_source import count_tokens, parse_python
from lora_doctor.static.remote_code.source_facts import (
    AdapterCall,
    ClassFacts,
    ConfigRead,
    ConfigRequirement,
    Import,
    Place,
    SourceFacts,
)
from lora_doctor.static.remote_code.source_reader import read_facts

_PREPARE = "prepare_inputs_for_generation"
_NO_PREPARE = {"object", "abc.ABC", "typing.Generic", "torch.nn.Module", "torch.nn.modules.Module"}
_MAX_STEPS = 32
# Following a name from file to file costs as much as looking at so many nodes of a syntax tree.
_RESOLVING = 10


@dataclass(frozen=True)
class NestedAdapterCall:
    """An adapter that a model's `__init__` puts on a part of itself.

    `class_name` is the class whose `__init__` (or a method called by it) does so, `wrapped` the
    part as written (`self.model`), `inner_class` the class of that part, None where it cannot be
    told. `inner_has_prepare_inputs` is None where unknown. For `task_type` see `AdapterCall`.
    """

    at: Place
    class_name: str
    wrapped: str
    inner_class: str | None
    inner_at: Place | None
    task_type: str | None
    task_type_known: bool
    inner_has_prepare_inputs: bool | None
    conditional: bool


@dataclass(frozen=True)
class RemoteCode:
    """All files of one repository."""

    #: Where the files lie.
    folder: Path
    #: What each file says, by its name.
    files: dict[str, SourceFacts]
    #: Files that could not be parsed, with the reason.
    unread: dict[str, str]
    #: The config's ``auto_map``.
    auto_map: tuple[AutoMapTarget, ...]
    #: The files that loading the model runs: those that `auto_map` names and what these import;
    #: others are samples and scripts.
    reachable: frozenset[str]
    #: Other repositories that `auto_map` leads to, whose code is not here.
    foreign: tuple[str, ...]
    #: How long reading took.
    seconds: float

    def _facts(self, *, reachable_only: bool) -> Iterator[SourceFacts]:
        for name, facts in self.files.items():
            if name in self.reachable or not reachable_only:
                yield facts

    def source(self, file: str) -> str:
        """The text of one of ``files``; empty when it can no longer be read."""
        try:
            return read_bytes(inside(self.folder, file), PYTHON_BYTES).decode("utf-8", "replace")
        except EvidenceError:
            return ""

    def classes(self, *, reachable_only: bool = True) -> tuple[ClassFacts, ...]:
        """The classes of the repository, by file and in their order."""
        found = self._facts(reachable_only=reachable_only)
        return tuple(each for facts in found for each in facts.classes.values())

    def imports(self, *, reachable_only: bool = True) -> tuple[Import, ...]:
        """Everything imported, relative imports included."""
        found = self._facts(reachable_only=reachable_only)
        return tuple(each for facts in found for each in facts.imports)

    def adapter_calls(self, *, reachable_only: bool = True) -> tuple[AdapterCall, ...]:
        """Calls of `get_peft_model`, wherever they stand."""
        found = self._facts(reachable_only=reachable_only)
        return tuple(each for facts in found for each in facts.adapter_calls)

    def requirements(self, *, reachable_only: bool = True) -> tuple[ConfigRequirement, ...]:
        """Config attributes that the code insists on."""
        found = self._facts(reachable_only=reachable_only)
        return tuple(each for facts in found for each in facts.requirements)

    def config_reads(self, *, reachable_only: bool = True) -> tuple[ConfigRead, ...]:
        """Keys that the code reads from dictionaries in the config."""
        found = self._facts(reachable_only=reachable_only)
        return tuple(each for facts in found for each in facts.config_reads)

    def transformers_names(
        self, *, reachable_only: bool = True
    ) -> tuple[tuple[str, str, Place, str], ...]:
        """(module, name, place, guard) of every name taken from transformers.

        By `from transformers.x import Y`, and by `transformers.x.Y` after `import transformers`
        (guard ""). For `guard` see `Import`.
        """
        found: dict[tuple[str, str, Place, str], None] = {}
        for facts in self._facts(reachable_only=reachable_only):
            modules: dict[str, str] = {}
            for each in facts.imports:
                if each.level or each.module.split(".")[0] != "transformers":
                    continue
                if each.name is not None:
                    found[each.module, each.name, each.at, each.guard] = None
                else:
                    whole = each.module if each.alias != "transformers" else "transformers"
                    modules[each.alias] = whole
            for use, at in facts.dotted_uses:
                head, _, rest = use.partition(".")
                if head in modules and rest:
                    path, _, name = f"{modules[head]}.{rest}".rpartition(".")
                    found[path, name, at, ""] = None
        return tuple(found)

    def auto_class(self, auto_class: str) -> ClassFacts | None:
        """The class that `auto_map` gives for `auto_class`; None when it is not in this code."""
        for target in self.auto_map:
            file = module_file(target.module, self.files)
            if target.auto_class == auto_class and target.repository is None and file:
                found = self.resolve(file, target.class_name)
                return found if isinstance(found, ClassFacts) else None
        return None

    # --- names ---

    def resolve(self, file: str, name: str, steps: int = _MAX_STEPS) -> ClassFacts | str:
        """What the dotted `name` means in `file`: a class of the repository, or a full name.

        `nn.Module` becomes `torch.nn.Module`; a name that nothing in the file binds stays as it is.
        """
        step(_RESOLVING)
        facts = self.files.get(file)
        head, _, rest = name.partition(".")
        if facts is None or steps == 0:
            return name
        if head in facts.classes and not rest:
            return facts.classes[head]
        each = facts.imports_by_alias.get(head)
        if each is not None:
            if each.name is None:
                bound = each.module if each.alias != each.module.split(".")[0] else each.alias
                return f"{bound}.{rest}" if rest else bound
            target = import_file(file, each, self.files)
            if target:
                return self.resolve(target, ".".join(filter(None, (each.name, rest))), steps - 1)
            # `from . import modeling_x`, then `modeling_x.Class`
            target = import_file(file, each, self.files, as_module=True)
            if target and rest:
                return self.resolve(target, rest, steps - 1)
            full = f"{each.module}.{each.name}" if each.module else each.name
            return f"{full}.{rest}" if rest else full
        for each in facts.star_imports:
            target = import_file(file, each, self.files)
            found = self.resolve(target, name, steps - 1) if target else name
            if isinstance(found, ClassFacts):
                return found
        return name

    def lineage(self, found: ClassFacts) -> tuple[ClassFacts | str, ...]:
        """The class, its bases and theirs, breadth first; those outside the repository by name."""
        seen: dict[str, ClassFacts | str] = {}
        todo: deque[ClassFacts | str] = deque([found])
        while todo and len(seen) < 200:
            step()
            current = todo.popleft()
            key = current if isinstance(current, str) else str(current.at)
            if key in seen:
                continue
            seen[key] = current
            if isinstance(current, ClassFacts):
                todo.extend(self.resolve(current.at.file, base) for base in current.bases)
        return tuple(seen.values())

    def has_prepare_inputs(self, found: ClassFacts | str) -> bool | None:
        """Whether a class has `prepare_inputs_for_generation`, as far as sources tell."""
        if isinstance(found, str):
            return _outside_has_prepare_inputs(found)
        answers: list[bool | None] = []
        for each in self.lineage(found):
            if isinstance(each, ClassFacts):
                answers.append(_PREPARE in each.methods or _PREPARE in each.attributes)
            else:
                answers.append(_outside_has_prepare_inputs(each))
        if True in answers:
            return True
        return None if None in answers else False

    def part(self, owner: ClassFacts, path: str) -> tuple[ClassFacts | str, ...]:
        """The classes that `self.<path>` of `owner` may be of; empty when the code does not say.

        `model.language_model` is followed from part to part, and into the bases of each.
        """
        owners: tuple[ClassFacts | str, ...] = (owner,)
        for name in path.split(".") if path else ():
            parts: list[ClassFacts | str] = []
            for each in owners:
                for ancestor in self.lineage(each) if isinstance(each, ClassFacts) else ():
                    if isinstance(ancestor, ClassFacts) and name in ancestor.assigned:
                        file, callees = ancestor.at.file, ancestor.assigned[name]
                        parts += [self.resolve(file, callee) for callee in callees]
                        break
            # self.model = get_peft_model(self.model, …) does not say what it is
            owners = tuple(each for each in parts if each != "peft.get_peft_model")
        return owners


def _outside_has_prepare_inputs(name: str) -> bool | None:
    last = name.rpartition(".")[2]
    if last == "GenerationMixin":
        return True
    if name in _NO_PREPARE or name.startswith("torch."):
        return False
    if name.partition(".")[0] == "transformers" and not last.startswith("Auto"):
        return installed_class_has(last, _PREPARE)
    return None


def read_remote_code(folder: Path, static: StaticEvidence) -> RemoteCode:
    """Parse the Python files of the repository in `folder`. Never raises for what is in them."""
    start = time.perf_counter()
    files: dict[str, SourceFacts] = {}
    unread: dict[str, str] = {}
    reader = _RepositoryReader(folder)
    with bounded(REPOSITORY_CODE):
        for name in sorted(static.python_files, key=lambda each: (each.count("/"), each)):
            try:
                files[name] = reader.read(name)
            except EvidenceError as error:
                unread[name] = str(error)
    own = [target for target in static.auto_map if target.repository is None]
    for target in own:
        if module_file(target.module, files) is None and not any(
            name in unread for name in _module_files(target.module)
        ):
            unread[_module_files(target.module)[0]] = "named by auto_map but not there"
    return RemoteCode(
        folder=folder,
        files=files,
        unread=unread,
        auto_map=static.auto_map,
        reachable=_reachable([target.module for target in own], files),
        foreign=tuple(sorted({t.repository for t in static.auto_map if t.repository is not None})),
        seconds=time.perf_counter() - start,
    )


class _RepositoryReader:
    """Reads file after file, until the code of the repository is more than is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = self.bytes = self.tokens = self.imports = 0

    def read(self, name: str) -> SourceFacts:
        """The facts of one file; EvidenceError with the reason where there are none."""
        what = "the code of the repository up to this file"
        content = read_bytes(inside(self.folder, name), PYTHON_BYTES)
        self.files += 1
        self.bytes += len(content)
        self.tokens += count_tokens(content)
        check_items(self.files, REPOSITORY_CODE_FILES, what, "files")
        check_items(self.bytes, REPOSITORY_CODE_BYTES, what, "bytes")
        check_items(self.tokens, REPOSITORY_CODE_TOKENS, what, "tokens")
        try:
            facts = read_facts(parse_python(content, name), name)
        except RecursionError:
            raise EvidenceError("nested too deeply to be read") from None
        self.imports += len(facts.imports)
        check_items(self.imports, REPOSITORY_IMPORTS, what, "imports")
        return facts


@bounded(REPOSITORY_CODE)
def nested_adapter_calls(code: RemoteCode) -> list[NestedAdapterCall]:
    """Each `get_peft_model` that runs in an `__init__` of the model, with what it wraps."""
    found = []
    for call in code.adapter_calls():
        owner = code.files[call.at.file].classes.get(call.class_name or "")
        if owner is None or not call.at_init:
            continue
        inner = _wrapped(code, owner, call)
        answers = {code.has_prepare_inputs(each) for each in inner}
        first = inner[0] if inner else None
        found.append(
            NestedAdapterCall(
                at=call.at,
                class_name=owner.name,
                wrapped=call.model,
                inner_class=first.name if isinstance(first, ClassFacts) else first,
                inner_at=first.at if isinstance(first, ClassFacts) else None,
                task_type=call.task_type,
                task_type_known=call.task_type_known,
                inner_has_prepare_inputs=answers.pop() if len(answers) == 1 else None,
                conditional=call.conditional,
            )
        )
    return found


def _wrapped(
    code: RemoteCode, owner: ClassFacts, call: AdapterCall
) -> tuple[ClassFacts | str, ...]:
    """The classes of what the call wraps."""
    names = call.callees or (call.model,)
    found: list[ClassFacts | str] = []
    for name in names:
        if name == "self":
            found.append(owner)
        elif name.startswith("self."):
            found.extend(code.part(owner, name.removeprefix("self.")))
        elif call.callees:
            found.append(code.resolve(call.at.file, name))
    return tuple(found)


# --- modules and files ----------------------------------------------------------------------


def _module_files(module: str, base: PurePosixPath | None = None) -> tuple[str, str]:
    path = (base or PurePosixPath()).joinpath(*module.split(".")) if module else base
    path = path or PurePosixPath()
    return f"{path}.py", str(path / "__init__.py")


def module_file(
    module: str, files: dict[str, SourceFacts], base: PurePosixPath | None = None
) -> str | None:
    """The file of the dotted `module`, counted from the folder `base`."""
    return next((name for name in _module_files(module, base) if name in files), None)


def import_file(
    file: str, item: Import, files: dict[str, SourceFacts], *, as_module: bool = False
) -> str | None:
    """The file of the repository that an import means; with `as_module` the one its name means."""
    module = item.module
    if as_module:
        module = f"{module}.{item.name}" if module else item.name or ""
    if item.level == 0:
        # `from modeling_x import …`: a file beside it, if there is one of that name.
        return module_file(module, files, PurePosixPath(file).parent)
    base = PurePosixPath(file).parent
    for _ in range(item.level - 1):
        base = base.parent
    if not module:
        return str(base / "__init__.py") if str(base / "__init__.py") in files else None
    return module_file(module, files, base)


def _reachable(modules: list[str], files: dict[str, SourceFacts]) -> frozenset[str]:
    """The files that importing `modules` imports, of this repository."""
    todo = [file for module in modules if (file := module_file(module, files))]
    reached: set[str] = set()
    while todo:
        file = todo.pop()
        if file in reached:
            continue
        reached.add(file)
        for item in files[file].imports:
            for as_module in (False, True):
                target = import_file(file, item, files, as_module=as_module)
                if target:
                    todo.append(target)
    return frozenset(reached)
