"""Calls of a program that load what only code of a folder can make, without trusting that code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.program.caught import is_caught
from lora_doctor.recipe.program.objects import class_of, is_false, is_none, text_of, top
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.adapter_files import CONFIG
from lora_doctor.static.installed.environment import (
    installed_text,
    known_architectures,
    package_folder,
)
from lora_doctor.static.installed.import_chain import FOLLOWED
from lora_doctor.static.installed.installed_classes import installed_class_has
from lora_doctor.static.installed.installed_names import importable, module_words
from lora_doctor.static.named_file import named_folder
from lora_doctor.static.piece import read_json_object
from lora_doctor.static.program.program import Program
from lora_doctor.static.program.values import Call

_MODEL_CONFIG = "config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
#: Arguments of ``AutoTokenizer`` that say which class it is, or bring a config.
_TELLS_CLASS = ("config", "tokenizer_type")
#: Files of an installed package that are looked through for what it registers, at most.
_MOST_FILES = 1000


@dataclass(frozen=True)
class OwnCode:
    """Code of a folder that has to run before what the folder holds can be loaded."""

    #: The Auto class that would run it.
    auto_class: str
    #: Its file and class: ``tokenization_x.XTokenizer``.
    reference: str
    #: The file in which that is said.
    file: Path


@dataclass(frozen=True)
class UntrustedCode:
    """A call that transformers refuses, since nobody has said that the code may run."""

    #: The call.
    call: Call
    #: What it would have to run.
    code: OwnCode


def untrusted_code(setup: Setup) -> Iterator[UntrustedCode]:
    """Each call that surely runs, for a folder that is here: one that the program makes itself, in
    part or in whole, may be another by then."""
    program = setup.program
    folders = (Path(), program.path.parent)
    asked = _Asked(program, folders)
    written = {
        text_of(call.value("save_directory", 0))
        for call in program.calls
        if call.method == "save_pretrained"
    }
    for call in program.calls:
        name = text_of(call.value("pretrained_model_name_or_path", 0))
        if name is None or name in written or not _asks(call):
            continue
        subfolder = call.value("subfolder")
        folder = named_folder(name, folders) if is_none(subfolder) else None
        code = asked.needed(call, folder) if folder is not None else None
        if code is not None and not is_caught(call, ValueError):
            yield UntrustedCode(call, code)


def _asks(call: Call) -> bool:
    """Whether a call is ``from_pretrained`` of an Auto class and surely trusts no code."""
    return (
        call.method == "from_pretrained"
        and call.certain
        and call.open is None
        and top(call.name) in ("transformers", "peft")
        and class_of(call).startswith("Auto")
        and is_false(call.value("trust_remote_code"))
    )


@dataclass(frozen=True)
class _Asked:
    """What a program asks the Auto classes for, and which classes of its own it has told them."""

    program: Program
    #: Where it may name folders from.
    folders: tuple[Path, ...]

    def needed(self, call: Call, folder: Path) -> OwnCode | None:
        """The code of the folder that this call would have to run."""
        owner = class_of(call)
        if top(call.name) == "peft":
            return self._of_adapter(folder, owner.replace("Peft", "", 1))
        if owner == "AutoTokenizer":
            told = any(not is_none(call.value(name)) for name in _TELLS_CLASS)
            return None if told else self._of_tokenizer(folder)
        if owner == "AutoConfig" or (
            owner.startswith("AutoModel") and is_none(call.value("config"))
        ):
            return self._of_model(folder, owner)
        return None

    def _of_adapter(self, folder: Path, owner: str) -> OwnCode | None:
        """PEFT loads the base model with the same arguments, then a tokenizer that lies beside the
        adapter."""
        base = _read(folder / CONFIG).get("base_model_name_or_path")
        found = named_folder(base, self.folders) if isinstance(base, str) and base else None
        code = self._of_model(found, owner) if found is not None else None
        return code or self._of_tokenizer(folder)

    def _of_model(self, folder: Path, owner: str) -> OwnCode | None:
        """transformers takes a class that it was told of before code, for each Auto class alone."""
        file = folder / _MODEL_CONFIG
        config = _read(file)
        code = _reference(config, "AutoConfig", file)
        if code is None or _is_known(config):
            return None
        if not self._is_told("AutoConfig", config.get("model_type")):
            return code
        told = owner == "AutoConfig" or self._is_told(owner)
        return None if told else _reference(config, owner, file)

    def _of_tokenizer(self, folder: Path) -> OwnCode | None:
        return None if self._is_told("AutoTokenizer") else _of_tokenizer(folder)

    def _is_told(self, owner: str, model_type: Any = None) -> bool:
        """Whether the program may have registered a class of its own with an Auto class (of this
        type of model, where one is given), or may something that it imports."""
        return any(
            _tells(call, owner, model_type) for call in self.program.calls
        ) or _registered_by_imports(self.program, owner)


def _tells(call: Call, owner: str, model_type: Any) -> bool:
    """``AutoConfig.register("own", OwnConfig)``, or the same at the table behind it."""
    if call.method != "register" or top(call.name) != "transformers":
        return False
    if class_of(call).endswith("_MAPPING"):
        return True
    if class_of(call) != owner:
        return False
    named = text_of(call.value("model_type", 0))
    return model_type is None or named is None or named == model_type


def _registered_by_imports(program: Program, owner: str) -> bool:
    """Whether a package that the program imports registers classes, or is not here to be read."""
    tops = {top(one.module) for one in program.imports}
    return any(
        _may_register(package, owner) for package in tops - set(FOLLOWED) - sys.stdlib_module_names
    )


@functools.cache
def _may_register(package: str, owner: str) -> bool:
    if importable(package) == "gone":
        return True
    folder = package_folder(package)
    files = sorted(folder.rglob("*.py"))[:_MOST_FILES] if folder is not None else []
    return any(f"{owner}.register(" in installed_text(file) for file in files)


def _of_tokenizer(folder: Path) -> OwnCode | None:
    """transformers takes a class of its own where the files name one, or where the model's type
    has one, whatever code there is."""
    settings, config = _read(folder / _TOKENIZER_CONFIG), _read(folder / _MODEL_CONFIG)
    code = _reference(settings, "AutoTokenizer", folder / _TOKENIZER_CONFIG) or (
        _reference(config, "AutoTokenizer", folder / _MODEL_CONFIG)
    )
    if code is None or _is_known(config):
        return None
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    own = named.removesuffix("Fast") if isinstance(named, str) else ""
    names = (own, f"{own}Fast") if own.isidentifier() else ()
    return None if any(map(_is_class_of_transformers, names)) else code


def _is_class_of_transformers(name: str) -> bool:
    """As ``AutoTokenizer`` looks for one: in its table, then among what transformers exports."""
    tables = ("transformers", "transformers.models.auto.tokenization_auto")
    return any(name in module_words(module) for module in tables) or (
        installed_class_has(name, "from_pretrained") is not None
    )


def _is_known(config: Mapping[str, Any]) -> bool:
    """Whether the installed transformers has this type of model; ``True`` where it is not known."""
    known = known_architectures()
    return not known or config.get("model_type") in known


def _reference(settings: Mapping[str, Any], auto_class: str, file: Path) -> OwnCode | None:
    """What ``auto_map`` names for an Auto class; a tokenizer has two, the slow and the fast."""
    auto_map = settings.get("auto_map")
    named = auto_map.get(auto_class) if isinstance(auto_map, dict) else auto_map
    found = named if isinstance(named, list) else [named]
    texts = [one for one in found if isinstance(one, str) and one]
    return OwnCode(auto_class, texts[-1], file) if texts else None


def _read(file: Path) -> Mapping[str, Any]:
    """The object in a file; empty where there is none that can be read, for which other rules
    are there."""
    try:
        return read_json_object(file)
    except EvidenceError:
        return {}
