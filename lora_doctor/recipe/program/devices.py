"""Which of several processes holds what of a program's model: spread over devices by the program
itself, sharded by FSDP or DeepSpeed, copied to each by DDP."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import PYTHON_BYTES
from lora_doctor.recipe.edit import Rewrite
from lora_doctor.recipe.program.launch import Launch, is_certain, part_of
from lora_doctor.recipe.program.objects import Settings, is_none, settings_of
from lora_doctor.recipe.program.order import rewrite_of
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.splices import removed
from lora_doctor.static.installed.training_defaults import default_fsdp_version
from lora_doctor.static.named_file import named_file
from lora_doctor.static.piece import read_bytes
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import (
    Argument,
    Call,
    Items,
    Known,
    NotPlainError,
    Unknown,
    Value,
    plain,
)

_STORAGE = "bnb_4bit_quant_storage"
#: A device map that is written out in the call.
_AS_IT_IS = re.compile(r"device_map\s*=\s*(['\"])\w+\1")
#: How a program asks which process it is, and of how many.
_PROCESSES = re.compile(
    r"(?i)\bworld_?size\b|\blocal_?rank\b|\bnum_processes\b|\b(?:local_)?process_index\b|\bddp\b"
    r"|\bis_distributed\w*|\bget_rank\b"
)
_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class SpreadTwice:
    """``device_map`` beside an argument that has several processes place the model."""

    #: The device map as it is given.
    device_map: object
    #: Where it stands.
    place: Place
    #: What places the model: ``FSDP``, ``DeepSpeed``, ``DeepSpeed ZeRO-3``.
    by: str
    #: Where that is asked for.
    by_place: Place
    #: Whether loading itself raises: transformers knows of ZeRO-3 by then.
    refused: bool
    #: The changes of the text that take the device map out.
    rewrites: tuple[Rewrite, ...] = ()
    #: Processes that a launcher beside it starts; 0 where the arguments of the program tell.
    processes: int = 0
    #: Whether that is certain: no comment, no file that only lies there, and the only way to start.
    certain: bool = True


@dataclass(frozen=True)
class Sharded:
    """Several processes are to hold a part of the weights each."""

    #: ``FSDP`` or ``ZeRO-3``.
    by: str
    #: FSDP's version; 0 for ZeRO.
    version: int
    #: Where that is asked for.
    place: Place
    #: What stands there.
    code: str
    #: Whether it is certain to count: no comment, no file that only lies there, and the only way
    #: to start.
    certain: bool = True


def sharded(setup: Setup, started: Sequence[Launch]) -> Sharded | None:
    """How the weights of a program's model are sharded, by its own arguments or by what starts
    it; ``None`` where they are not, or that is not known."""
    arguments = settings_of(setup.roles.training)
    for name in ("fsdp", "deepspeed") if arguments is not None else ():
        assert arguments is not None
        value, argument = arguments.value(name), arguments.arguments.get(name)
        if argument is None or is_none(value):
            continue
        place, code = argument.whole.place, " ".join(argument.whole.text.split())[:100]
        if name == "deepspeed" and _stage(setup, value) == 3:
            return Sharded("ZeRO-3", 0, place, code)
        if name == "fsdp" and isinstance(value, (Known, Items)) and plain(value):
            version = _fsdp_version(setup, arguments.value("fsdp_config"))
            return Sharded("FSDP", version, place, code) if version else None
    for launch in started:
        if _shards(launch):
            by = "FSDP" if launch.fsdp else "ZeRO-3"
            certain = is_certain(launch, started, _shards)
            return Sharded(by, launch.fsdp, launch.place, launch.code, certain)
    return None


def _shards(launch: Launch) -> bool:
    return bool(launch.fsdp) or launch.zero_stage == 3


def storage_dtype(setup: Setup) -> str | None:
    """The dtype that 4-bit weights are stored as: ``uint8`` unless the program says otherwise;
    ``None`` where it says something that is not known."""
    made = setup.parts.get("quantization")
    if made is None or (made.open is None and is_none(made.value(_STORAGE))):
        return "uint8"
    try:
        return str(plain(made.value(_STORAGE))).rpartition(".")[2]
    except NotPlainError:
        return None


def _fsdp_version(setup: Setup, config: Value | None) -> int:
    """FSDP's version by ``fsdp_config``, else by default; 0 where it is not known."""
    try:
        found: Any = None if is_none(config) else plain(config)
    except NotPlainError:
        return 0
    if isinstance(found, str):
        found = _file(found, setup.program.path.parent)
    if isinstance(found, Mapping):
        for name in ("version", "fsdp_version"):
            if name in found:
                return found[name] if isinstance(found[name], int) else 0
    return default_fsdp_version()


def spread_twice(setup: Setup, started: Sequence[Launch] = ()) -> SpreadTwice | None:
    """The contradiction of a program; ``None`` where there is none, or it is not known."""
    loader, arguments = setup.roles.loader, settings_of(setup.roles.training)
    if loader is None or not loader.certain:
        return None
    spread = loader.argument("device_map")
    if spread is None or is_none(spread.value):
        return None
    if _chosen_by_process(setup, spread):
        return None
    try:
        device_map = plain(spread.value)
    except NotPlainError:
        return None
    by_arguments = _by_arguments(setup, loader, arguments, spread, device_map)
    return by_arguments or _by_launcher(started, loader, spread, device_map)


def _chosen_by_process(setup: Setup, spread: Argument) -> bool:
    """Whether the device map may be another one where several processes are started: it is no
    string in the call, and the program asks how many there are."""
    if _AS_IT_IS.fullmatch(spread.whole.text):
        return False
    return any(_PROCESSES.search(unit.python) for unit in setup.program.units)


def _by_arguments(
    setup: Setup, loader: Call, arguments: Settings | None, spread: Argument, device_map: object
) -> SpreadTwice | None:
    """Arguments of the Trainer that leave the model to DeepSpeed or FSDP."""
    for name in ("deepspeed", "fsdp") if arguments is not None else ():
        assert arguments is not None
        value = arguments.value(name)
        stage = _stage(setup, value) if name == "deepspeed" else 0
        if is_none(value) or (isinstance(value, (Known, Items)) and not plain(value)):
            continue
        if isinstance(value, Unknown):  # it may be None
            continue
        if device_map not in _SPREAD and stage != 3:
            continue
        made, argument = arguments.call, arguments.arguments.get(name)
        place = argument.whole.place if argument else made.place if made else spread.whole.place
        known = made is not None and made.certain and made.number < loader.number
        by = "FSDP" if name == "fsdp" else f"DeepSpeed ZeRO-{stage}" if stage else "DeepSpeed"
        return SpreadTwice(
            device_map, spread.whole.place, by, place, stage == 3 and known, _out(loader, spread)
        )
    return None


def _by_launcher(
    started: Sequence[Launch], loader: Call, spread: Argument, device_map: object
) -> SpreadTwice | None:
    """A launcher that starts several processes, each of which loads the model so."""
    for launch in started if device_map in _SPREAD else ():
        if launch.several:
            certain = is_certain(launch, started, lambda one: one.processes != 1)
            return SpreadTwice(
                device_map, spread.whole.place, launch.code, launch.place, False,
                _out(loader, spread), launch.processes or 0, certain,
            )  # fmt: skip
    return None


def _out(loader: Call, spread: Argument) -> tuple[Rewrite, ...]:
    """The change of the text that takes the device map out; empty where it is done by hand."""
    change = None if spread.unpacked else removed(loader, spread)
    return (rewrite_of(change),) if change is not None and change[0].unit.editable else ()


def deepspeed_of(setup: Setup, value: Value | None) -> Mapping[str, Any]:
    """A config of DeepSpeed that a program gives, written out or in a file; empty where it is not
    known."""
    try:
        config: Any = plain(value)
    except NotPlainError:
        return {}
    if isinstance(config, str):
        config = _file(config, setup.program.path.parent)
    return config if isinstance(config, Mapping) else {}


def _stage(setup: Setup, value: Value | None) -> int:
    """ZeRO's stage in a config of DeepSpeed; 0 where it does not say."""
    stage = part_of(deepspeed_of(setup, value), "zero_optimization").get("stage")
    return stage if isinstance(stage, int) else 0


def _file(name: str, folder: Path) -> Any:
    for place in (Path(), folder, folder.parent):
        path = named_file(name, (place,))
        try:
            if path is not None:
                return json.loads(read_bytes(path, PYTHON_BYTES))
        except (EvidenceError, ValueError, RecursionError, OSError):
            continue
    return None
