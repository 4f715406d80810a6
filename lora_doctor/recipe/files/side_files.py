"""Files that a set-up names or that lie beside it: DeepSpeed, accelerate, and pinned packages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.files import json_syntax, yaml_syntax
from lora_doctor.recipe.files.bytes import read_text
from lora_doctor.recipe.files.format import framework_named
from lora_doctor.recipe.files.named_paths import AbsentPath, absent_paths
from lora_doctor.recipe.pinned import pins_beside
from lora_doctor.recipe.program.launch import part_of
from lora_doctor.recipe.set_up import SetUp
from lora_doctor.static.named_file import named_file
from lora_doctor.static.program.program import Pin

#: Folders above a set-up in which a file that it names, or its requirements, are looked for.
_ABOVE = 3
#: Names of ms-swift for configs of its own.
_STAGES = {"zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3,
           "zero2_offload": 2, "zero3_offload": 3}  # fmt: skip


@dataclass(frozen=True)
class SideFiles:
    """What was found."""

    #: The DeepSpeed config; ``None`` where none is named, or it is not here.
    deepspeed: Mapping[str, Any] | None = None
    #: Its path.
    deepspeed_file: str = ""
    #: The config of ``accelerate launch``; ``None`` where none is named, or it is not here.
    accelerate: Mapping[str, Any] | None = None
    #: Its path.
    accelerate_file: str = ""
    #: Packages that files beside the set-up ask for.
    pins: tuple[Pin, ...] = ()
    #: Files that are named and not here, each with why.
    missing: Mapping[str, str] = field(default_factory=dict)
    #: Files and folders that are named, and are not in the folder that would hold them.
    absent: tuple[AbsentPath, ...] = ()
    #: The file that registers data sets; empty where it is not here.
    registry_file: str = ""
    #: The names in it.
    registered: frozenset[str] = frozenset()

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage; 0 without."""
        stage: Any = 0
        if self.deepspeed is not None:
            stage = part_of(self.deepspeed, "zero_optimization").get("stage", 0)
        elif self.accelerate is not None:
            stage = part_of(self.accelerate, "deepspeed_config").get("zero_stage", 0)
        return stage if isinstance(stage, int) else 0

    @property
    def fsdp(self) -> bool:
        """Whether accelerate shards with FSDP."""
        kind = str((self.accelerate or {}).get("distributed_type", "")).upper()
        return kind == "FSDP"


def read_side_files(set_up: SetUp) -> SideFiles:
    """What the set-up names, and what lies beside it. A file that cannot be read is missing."""
    folder = Path(set_up.files[0]).resolve().parent if set_up.files else Path()
    missing: dict[str, str] = {}
    deepspeed, deepspeed_file = _deepspeed(set_up, folder, missing)
    named = set_up.launcher_options.get("config_file")
    accelerate, accelerate_file = None, ""
    if set_up.launcher == "accelerate" and isinstance(named, str):
        accelerate, accelerate_file = _read(named, folder, missing)
    framework = framework_named(set_up.format)
    starts, above = [Path(), folder], list(folder.parents)[:_ABOVE]
    absent = absent_paths(framework.paths(set_up.entries), starts, above, set_up.files)
    registry = framework.registry(set_up.entries)
    registered, registry_file = _read(registry[1], folder, {}) if registry else (None, "")
    pins = pins_beside(folder, _ABOVE)
    return SideFiles(
        deepspeed, deepspeed_file, accelerate, accelerate_file, pins, missing,
        tuple(absent), registry_file if registered else "", frozenset(registered or ()),
    )  # fmt: skip


def _deepspeed(
    set_up: SetUp, folder: Path, missing: dict[str, str]
) -> tuple[Mapping[str, Any] | None, str]:
    named = set_up.entries.get("deepspeed")
    if isinstance(named, Mapping):
        return named, str(set_up.places.get("deepspeed", ""))
    if not isinstance(named, str) or not named.strip():
        return None, ""
    if named in _STAGES:
        return {"zero_optimization": {"stage": _STAGES[named]}}, f"ms-swift's {named}"
    return _read(named, folder, missing)


def _read(name: str, folder: Path, missing: dict[str, str]) -> tuple[Mapping[str, Any] | None, str]:
    """The mapping in a file that the set-up names."""
    given = Path(name)
    places = [Path(), folder, *list(folder.parents)[:_ABOVE]]
    path = named_file(name, places) or given
    shown = os.path.relpath(path) if path.is_absolute() and not given.is_absolute() else str(path)
    try:
        text = read_text(path).text
        syntax = json_syntax if path.suffix.lower() == ".json" else yaml_syntax
        return syntax.parse(text, path), shown
    except InputError as error:
        missing[name] = str(error)
        return None, shown
