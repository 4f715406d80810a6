"""The formats of recipe files that there are, and reading one of them into a recipe.

A format is a module in ``formats/``; an installed package adds one through an entry point of the
group ``lora_doctor.recipe_formats`` that names a module.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

from lora_doctor.discovery import find_modules
from lora_doctor.errors import InputError
from lora_doctor.recipe.files.framework import Framework, excluded, framework_recipe
from lora_doctor.recipe.files.refusals import (
    both_on,
    none_of_the_choices,
    not_together,
    texts_for_others,
)
from lora_doctor.recipe.files.remark import Remark
from lora_doctor.recipe.files.spelling import Spellings
from lora_doctor.recipe.keys import ADAPTER_KEYS, OUTER_KEYS
from lora_doctor.recipe.recipe import Recipe, make_recipe
from lora_doctor.static.installed.framework_fields import known_to_trainers
from lora_doctor.static.place import Place
from lora_doctor.text import must_be

__all__ = ["Framework", "RecipeFormat", "Remark", "find_formats", "format_named", "format_of",
           "framework_named", "framework_of", "read_values", "remarks_of"]  # fmt: skip

ENTRY_POINTS = "lora_doctor.recipe_formats"


class RecipeFormat(Protocol):
    """What a module in ``formats/`` offers."""

    #: What a message calls such a file, after "a".
    NAME: str
    #: Formats are asked from the highest to the lowest: one that demands more of a file goes
    #: before one that demands less. 0 is the recipe file, which takes what is left.
    SPECIFICITY: int
    #: Whether what the file does not set is left to PEFT; otherwise it is proposed.
    COMPLETE: bool
    #: Whether an entry that spells a key which nobody knows is passed over (mistyped ones as
    #: well) or refused with the nearest name. An entry that ``SPELLINGS`` says nothing of is the
    #: framework's own business and passed over either way.
    IGNORES_UNKNOWN: bool
    #: How the file spells the keys of a recipe, for reading and for writing; what has the recipe's
    #: own name there is let in by ``same_name``, which lets nothing in by itself. The format of a
    #: training framework has a ``FRAMEWORK`` besides, see :mod:`.framework`.
    SPELLINGS: Spellings

    def recognises(self, values: Mapping[str, Any]) -> bool:
        """Whether a file with this content is of the format."""


def find_formats() -> list[RecipeFormat]:
    """Every format, the most specific first.

    Raises:
        InputError: a module lacks a part or has a spelling turned around, or that of an installed
            package cannot be imported.
    """
    formats = []
    for module in find_modules("lora_doctor.recipe.files.formats", ENTRY_POINTS):
        missing = [name for name in _PARTS if not hasattr(module, name)]
        if missing:
            raise InputError(
                f"recipe format {module.__name__}: has no {missing[0]}; "
                "copy recipe/files/formats/peft_adapter_config.py"
            )
        found = cast(RecipeFormat, module)
        turned = found.SPELLINGS.turned_around({*ADAPTER_KEYS, *OUTER_KEYS})
        if turned is not None:
            raise InputError(
                f"recipe format {module.__name__}: Spelling({turned.key!r}, {turned.name!r}) names "
                "the entry of the file first; the key of the recipe comes first"
            )
        formats.append(found)
    return sorted(formats, key=lambda one: (-one.SPECIFICITY, one.NAME))


_PARTS = (*RecipeFormat.__annotations__, "recognises")


def format_of(values: Mapping[str, Any]) -> RecipeFormat:
    """The format of a file with this content."""
    return next(one for one in find_formats() if one.recognises(values))


def format_named(name: str) -> RecipeFormat:
    """The format that is called so, whatever the case and the dashes.

    Raises:
        InputError: there is none.
    """
    formats = find_formats()
    for one in formats:
        if _plain_name(one.NAME) == _plain_name(name):
            return one
    known = ", ".join(one.NAME for one in formats)
    raise InputError(f"format {name!r}: expected one of {known}")


def _plain_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def framework_of(found: RecipeFormat) -> Framework | None:
    """The training framework whose format it is; ``None`` for a format that is nobody's."""
    return cast("Framework | None", getattr(found, "FRAMEWORK", None))


def framework_named(name: str) -> Framework:
    """The training framework whose format is called so. Raises InputError: there is none."""
    found = framework_of(format_named(name))
    if found is None:
        raise InputError(f"format {name!r}: is of no training framework")
    return found


def remarks_of(
    name: str, entries: Mapping[str, Any], in_file: Collection[str] = ()
) -> Iterator[Remark]:
    """What the training framework of this format does with entries that do not go together, and
    those that it refuses. ``in_file``: the entries that stand in a file, and not in a command."""
    found = format_named(name)
    framework = framework_named(name)
    told = [*framework.remarks(entries), *both_on(excluded(framework, found.SPELLINGS, entries))]
    yield from told
    yield from not_together(framework.fields(), entries, told)
    extended = any(entries.get(name) for name in framework.extended_by)
    known = functools.partial(known_to_trainers, framework.sources)
    yield from none_of_the_choices(framework.fields(), entries, extended, known)
    if framework.keeps_texts:
        yield from texts_for_others(framework.fields(), entries, in_file)


def read_values(
    found: RecipeFormat,
    values: Mapping[str, Any],
    where: str,
    places: Mapping[str, Place] | None = None,
) -> Recipe:
    """The recipe that the content of a file amounts to. ``places``: where each entry stands.

    Raises:
        InputError: two entries set one key, or a value or (where the format refuses it) a key is
            none that a recipe has.
    """
    framework = framework_of(found)
    if framework is not None:
        return framework_recipe(found.NAME, framework, found.SPELLINGS, values, places or {}, where)
    read: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in values.items():
        for spelling in found.SPELLINGS.of_name(name):
            key = spelling.key
            if key in names:
                raise InputError(f"{where}: {names[key]!r} and {name!r} both set {key}; keep one")
            names[key] = name
            try:
                read[key] = spelling.read(value)
            except ValueError as error:
                raise InputError(f"{where}: {name} {must_be(error)}, not {value!r:.60}") from None
    recipe = make_recipe(
        read,
        where=where,
        origin="file",
        complete=found.COMPLETE,
        ignore_unknown=found.IGNORES_UNKNOWN,
        of_file=True,
    )
    return replace(recipe, names={key: name for key, name in names.items() if key != name})
