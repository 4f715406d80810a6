"""A model that a program spreads over devices by itself, while its arguments leave that to FSDP or
DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import PYTHON_BYTES
from lora_doctor.recipe.edit import Rewrite
from lora_doctor.recipe.program.objects import is_none, settings_of
from lora_doctor.recipe.program.order import rewrite_of
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.splices import removed
from lora_doctor.static.piece import read_bytes
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Items, Known, NotPlainError, Value, plain

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


def spread_twice(setup: Setup) -> SpreadTwice | None:
    """The contradiction of a program; ``None`` where there is none, or it is not known."""
    loader, arguments = setup.roles.loader, settings_of(setup.roles.training)
    if loader is None or arguments is None or not loader.certain:
        return None
    spread = loader.argument("device_map")
    if spread is None or is_none(spread.value):
        return None
    try:
        device_map = plain(spread.value)
    except NotPlainError:
        return None
    for name in ("deepspeed", "fsdp"):
        value = arguments.value(name)
        stage = _stage(setup, value) if name == "deepspeed" else 0
        if is_none(value) or (isinstance(value, (Known, Items)) and not plain(value)):
            continue
        if device_map not in _SPREAD and stage != 3:
            continue
        made, argument = arguments.call, arguments.arguments.get(name)
        place = argument.whole.place if argument else made.place if made else spread.whole.place
        known = made is not None and made.certain and made.number < loader.number
        by = "FSDP" if name == "fsdp" else f"DeepSpeed ZeRO-{stage}" if stage else "DeepSpeed"
        change = None if spread.unpacked else removed(loader, spread)
        editable = change is not None and change[0].unit.editable
        return SpreadTwice(
            device_map, spread.whole.place, by, place, stage == 3 and known,
            (rewrite_of(change),) if change is not None and editable else (),
        )  # fmt: skip
    return None


def _stage(setup: Setup, value: Value | None) -> int:
    """ZeRO's stage in a config of DeepSpeed, written out or in a file; 0 where it does not say."""
    try:
        config: Any = plain(value)
    except NotPlainError:
        return 0
    if isinstance(config, str):
        config = _file(config, setup.program.path.parent)
    part = config.get("zero_optimization") if isinstance(config, Mapping) else None
    stage = part.get("stage") if isinstance(part, Mapping) else None
    return stage if isinstance(stage, int) else 0


def _file(name: str, folder: Path) -> Any:
    given = Path(name).expanduser()
    for path in (given, folder / given, folder.parent / given):
        try:
            return json.loads(read_bytes(path, PYTHON_BYTES))
        except (EvidenceError, ValueError, RecursionError, OSError):
            continue
    return None
