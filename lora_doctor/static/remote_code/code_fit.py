"""Whether code of a repository fits the installed packages: what it imports, reads and declares.

Read from both sources, the repository's and the installed transformers'; nothing is imported and
nothing is executed. What cannot be told is left out.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lora_doctor.limits import REPOSITORY_CODE, bounded, step
from lora_doctor.static.installed.environment import installed_text, package_folder
from lora_doctor.static.installed.installed_names import importable
from lora_doctor.static.remote_code.demanded_packages import demanded_packages
from lora_doctor.static.remote_code.loaded_code import LoadedCode
from lora_doctor.static.remote_code.remote_code import RemoteCode
from lora_doctor.static.remote_code.source_facts import ConfigRead, Import, Place

#: Packages whose modules are plain Python, so that their sources say what they offer.
_READABLE = ("transformers", "peft")
_ROPE = "rope_scaling"
# In steps: every finder of this Python is asked for a package.
_FINDING = 100


@dataclass(frozen=True)
class MissingPackage:
    """A package that is imported and not installed.

    ``when`` says when the import itself would run: "always", or the guard of `Import`; "demanded"
    when only transformers' look for imports finds it. ``own_file`` is the file of the repository
    that is called so: an absolute import of what only a relative one finds.
    """

    name: str
    at: Place
    when: str
    own_file: str | None


@dataclass(frozen=True)
class MissingName:
    """A name, or a whole module (``name`` None), that an installed package does not have."""

    module: str
    name: str | None
    at: Place
    certain: bool

    def __str__(self) -> str:
        return f"{self.name} from {self.module}" if self.name else self.module


@dataclass(frozen=True)
class MissingKey:
    """A key that a config value of this checkpoint does not have where the code reads it.

    ``value`` is the value in the file; ``rewritten`` whether the installed transformers makes a
    dictionary of it, so that a look for None no longer protects the read.
    """

    read: ConfigRead
    value: Any
    rewritten: bool


@dataclass(frozen=True)
class TiedKeys:
    """``_tied_weights_keys`` as a list where the installed transformers takes a dictionary.

    ``tied`` is the checkpoint's ``tie_word_embeddings``, None where it does not say.
    """

    class_name: str
    at: Place
    tied: bool | None


@bounded(REPOSITORY_CODE)
def missing_packages(
    code: RemoteCode, loaded: LoadedCode, *, demands_all: bool
) -> tuple[MissingPackage, ...]:
    """Packages that loading the model fails for.

    ``demands_all``: the code comes from the hub, where transformers looks into every file; in a
    folder it looks into those that ``auto_map`` names, and the others fail when they are run.
    """
    found: dict[str, MissingPackage] = {}
    for file in sorted(loaded.certain | loaded.possible):
        facts = code.files[file]
        lines: dict[str, int] = {}
        if file in loaded.named or demands_all:
            lines |= demanded_packages(code.source(file))
        for item in facts.imports:
            step()
            if item.level or (item.guard and item.module.split(".")[0] not in lines):
                continue
            if item.guard == "" and file in loaded.certain:
                lines.setdefault(item.module.split(".")[0], item.at.line)
        for name, line in lines.items():
            step(_FINDING)
            if not _installed(name) and name not in found:
                own = next((own for own in (f"{name}.py", f"{name}/__init__.py")
                            if own in code.files), None)  # fmt: skip
                step(len(facts.imports))
                when = _when(facts.imports, name)
                found[name] = MissingPackage(name, Place(file, line), when, own)
    return tuple(found.values())


def _when(imports: tuple[Import, ...], package: str) -> str:
    guards = [item.guard for item in imports
              if not item.level and item.module.split(".")[0] == package]  # fmt: skip
    if "" in guards:
        return "always"
    return guards[0] if guards else "demanded"


@functools.lru_cache(maxsize=4096)
def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return True  # half there: not for us to say


@bounded(REPOSITORY_CODE)
def missing_names(code: RemoteCode, loaded: LoadedCode) -> tuple[MissingName, ...]:
    """Names that loading or running the model takes from a package that does not have them."""
    taken = [item for file in sorted(loaded.certain) for item in _taken(code, loaded, file)]
    # Module by module, so that each source is read once; the answers are kept.
    for module, wanted in sorted({(item.module, item.name or "") for item in taken}):
        if importable(module) != "gone" and wanted:
            importable(module, wanted)
    found: dict[tuple[str, str | None], MissingName] = {}
    for item in taken:
        if importable(item.module) == "gone":
            name = None
        elif item.name is not None and importable(item.module, item.name) == "gone":
            name = item.name
        else:
            continue
        missing = MissingName(item.module, name, item.at, certain=not item.guard)
        found.setdefault((item.module, name), missing)
    return tuple(found.values())


def _taken(code: RemoteCode, loaded: LoadedCode, file: str) -> Iterator[Import]:
    """The imports that surely run, from installed libraries whose sources are read."""
    for item in code.files[file].imports:
        step()
        package = item.module.split(".")[0]
        if item.level or package not in _READABLE or not _installed(package):
            continue
        at_init = item.at_init and loaded.uses(file, item.class_name)
        # Others are caught, asked for before, or perhaps never run.
        if not item.guard or (item.guard == "function" and at_init):
            yield item


@bounded(REPOSITORY_CODE)
def missing_keys(
    code: RemoteCode, loaded: LoadedCode, config: dict[str, Any]
) -> tuple[MissingKey, ...]:
    """Keys of ``rope_scaling`` that the model's code insists on and that are not there."""
    value = config.get(_ROPE)
    if value is not None and not isinstance(value, dict):
        return ()
    rewrites = _rewrites_rope(code, loaded)
    if value is None and not rewrites:
        return ()  # the code looks for None, or fails on every release
    present = {*(value or ()), *(_rope_keys() if rewrites else ())}
    written = _written_keys(code)
    found = []
    for file in sorted(loaded.certain | loaded.possible):
        for read in code.files[file].config_reads:
            if read.attribute != _ROPE or not read.strict or read.conditional:
                continue
            if not loaded.uses(file, read.class_name) or read.class_name == _config_name(loaded):
                continue
            if read.key not in present and read.key not in written:
                found.append(MissingKey(read, value, value is None))
    found.sort(key=lambda each: (not each.read.at_init, each.read.at.file, each.read.at.line))
    return tuple(found)


_WRITTEN_KEY = re.compile(
    r"""\[["']([^"'\n]{1,200})["']\]\s*=[^=]|setdefault\(\s*["']([^"'\n]{1,200})["']"""
)


def _written_keys(code: RemoteCode) -> set[str]:
    """The keys that the code puts into dictionaries itself."""
    found = set()
    for file in code.files:
        for match in _WRITTEN_KEY.finditer(code.source(file)):
            step()
            found.add(match[1] or match[2])
    return found


def _config_name(loaded: LoadedCode) -> str | None:
    return loaded.config_class.name if loaded.config_class else None


def _rewrites_rope(code: RemoteCode, loaded: LoadedCode) -> bool:
    """Whether ``None`` becomes a dictionary: the config class sets it before its base runs, and
    the installed base has ``rope_scaling`` as a property over ``rope_parameters``."""
    if loaded.config_class is None or not _rope_is_a_property():
        return False
    return any(
        not isinstance(each, str) and _ROPE in each.before_super
        for each in code.lineage(loaded.config_class)
    )


@functools.cache
def _library_text(file: str) -> str:
    folder = package_folder("transformers")
    return installed_text(folder / file) if folder else ""


def _rope_is_a_property() -> bool:
    text = _library_text("configuration_utils.py")
    return re.search(r"@property\s+def rope_scaling\(self\)", text) is not None


def _rope_keys() -> tuple[str, ...]:
    """What the installed transformers puts into a dictionary that it makes itself."""
    text = _library_text("modeling_rope_utils.py")
    return tuple(dict.fromkeys(re.findall(r"rope_parameters\.setdefault\(\s*\"(\w+)\"", text)))


def tied_lists(
    code: RemoteCode, loaded: LoadedCode, config: dict[str, Any]
) -> tuple[TiedKeys, ...]:
    """Lists of tied weights in the classes that would be used, where dictionaries are taken."""
    if not _ties_by_dictionary():
        return ()
    tied = config.get("tie_word_embeddings")
    return tuple(
        TiedKeys(each.name, each.tied_keys[1], tied if isinstance(tied, bool) else None)
        for each in loaded.classes
        if each.tied_keys is not None and each.tied_keys[0] == "list"
    )


def _ties_by_dictionary() -> bool:
    text = _library_text("modeling_utils.py")
    return re.search(r"^    _tied_weights_keys: dict\b", text, re.MULTILINE) is not None
