"""The single values of the user's file that the libraries take as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_doctor.recipe.keys import ALIASES, BY_NAME, config_fields, name_in
from lora_doctor.static.installed.peft_types import config_class_of

if TYPE_CHECKING:
    from lora_doctor.engine.written_evidence import WrittenEvidence
    from lora_doctor.recipe.program.plain_values import PlainValue
    from lora_doctor.static.place import Place

#: Arguments that decide whether others are used: how often is of no account where it is never.
_BESIDE = "_strategy"
_TRAINER = "transformers.TrainingArguments"


@dataclass(frozen=True)
class WrittenValue:
    """One value, and the class that it is handed to."""

    #: Dotted name of the class.
    name: str
    #: The argument.
    key: str
    #: What it is set to.
    value: Any
    #: Other arguments of the same call, which decide whether this one is used.
    beside: Mapping[str, Any] = field(default_factory=dict)
    #: Whether no key of this name can have it.
    impossible: bool = False
    #: The key of the recipe, where a recipe has one for it.
    recipe_key: str = ""
    #: Where it stands; ``None`` where that is not known.
    place: Place | None = None


def written_values(case: WrittenEvidence) -> list[WrittenValue]:
    """Those of a program; of a recipe file those that no key can have."""
    if case.has("program"):
        from lora_doctor.recipe.program.plain_values import plain_values

        return list(_of_program(plain_values(case.program), case))
    return list(_of_file(case))


def _of_program(values: list[PlainValue], case: WrittenEvidence) -> Iterator[WrittenValue]:
    impossible = {(one.key, one.place) for one in case.asked.impossible}
    for one in values:
        beside = {
            other.key: other.value
            for other in values
            if other.name == one.name and other.key.endswith(_BESIDE)
        }
        key = _recipe_key(one.key)
        yield WrittenValue(
            one.name, one.key, one.value, {} if one.name.startswith("peft.") else beside,
            (key, one.place) in impossible, key, one.place,
        )  # fmt: skip


def _of_file(case: WrittenEvidence) -> Iterator[WrittenValue]:
    kind = case.asked.peft_type
    config = config_class_of(kind)
    for one in case.asked.impossible:
        if BY_NAME[one.key].part != "adapter":
            yield WrittenValue(_TRAINER, one.key, one.value, {}, True, one.key, one.place)
        elif config is not None:
            key = name_in(config_fields(kind), one.key)
            yield WrittenValue(f"peft.{config}", key, one.value, {}, True, one.key, one.place)


def _recipe_key(name: str) -> str:
    key = ALIASES.get(name, name)
    return key if key in BY_NAME else ""
