"""Calls of a program that load what only code of a folder can make, without trusting that code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.program.caught import is_caught
from lora_doctor.recipe.program.objects import class_of, is_false, is_none, text_of, top
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.adapter_files import CONFIG
from lora_doctor.static.installed.environment import known_architectures
from lora_doctor.static.installed.installed_classes import installed_class_has
from lora_doctor.static.installed.installed_names import module_words
from lora_doctor.static.named_file import named_folder
from lora_doctor.static.piece import read_json_object
from lora_doctor.static.program.values import Call

_MODEL_CONFIG = "config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
#: Arguments of ``AutoTokenizer`` that say which class it is, or bring a config.
_TELLS_CLASS = ("config", "tokenizer_type")


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
        code = _needed(call, folder, folders) if folder is not None else None
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


def _needed(call: Call, folder: Path, folders: tuple[Path, ...]) -> OwnCode | None:
    owner = class_of(call)
    if top(call.name) == "peft":
        return _of_adapter(folder, folders)
    if owner == "AutoTokenizer":
        told = any(not is_none(call.value(name)) for name in _TELLS_CLASS)
        return None if told else _of_tokenizer(folder)
    if owner == "AutoConfig" or (owner.startswith("AutoModel") and is_none(call.value("config"))):
        return _of_config(folder)
    return None


def _of_adapter(folder: Path, folders: tuple[Path, ...]) -> OwnCode | None:
    """PEFT loads the base model with the same arguments, then a tokenizer that lies beside the
    adapter."""
    base = _read(folder / CONFIG).get("base_model_name_or_path")
    found = named_folder(base, folders) if isinstance(base, str) and base else None
    code = _of_config(found) if found is not None else None
    return code or _of_tokenizer(folder)


def _of_config(folder: Path) -> OwnCode | None:
    config = _read(folder / _MODEL_CONFIG)
    code = _reference(config, "AutoConfig", folder / _MODEL_CONFIG)
    return None if code is None or _is_known(config) else code


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
