"""The recipe: what the user is about to train, in PEFT's and transformers' own names.

A recipe holds only what somebody decided (an option, a file, a proposal of ours, a fix); what
nobody set is left to the installed PEFT and transformers, so their defaults are never copied here.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import ENTRY, REMOVE, Edit
from lora_doctor.recipe.impossible import Impossible
from lora_doctor.recipe.keys import (
    ALIASES,
    BOOKKEEPING_KEYS,
    BY_NAME,
    EXCLUSIVE,
    FOUND_OUT_KEYS,
    INFERENCE_MODE,
    MAPPING_KEYS,
    OUTER_KEYS,
    RUNTIME_CONFIG,
    check_value,
    config_fields,
    is_key_of,
    known_keys,
    name_in,
)
from lora_doctor.recipe.set_up import SetUp
from lora_doctor.recipe.written import Written
from lora_doctor.static.place import Place

#: ``default``: what the user's framework does where the set-up says nothing.
Origin = Literal["option", "file", "argument", "proposed", "fix", "checkpoint", "default"]


@dataclass(frozen=True)
class Recipe:
    """What is to be trained. Immutable: ``edit`` and ``fill`` give a new recipe."""

    #: Key to value, in the names of PEFT and transformers; keys that are absent are left to the
    #: installed ones.
    values: Mapping[str, Any] = field(default_factory=dict)
    #: Who set each key.
    origins: Mapping[str, Origin] = field(default_factory=dict)
    #: True when everything that is not set is left to PEFT (an ``adapter_config.json``, a
    #: ``LoraConfig``); otherwise open keys are proposed by looking at the model.
    complete: bool = False
    #: The file that it was read from, which a fix edits.
    file: Path | None = field(default=None, compare=False)
    #: Key to the name that the file has for it, where it is another one.
    names: Mapping[str, str] = field(default_factory=dict, compare=False)
    #: Keys of the file, with their values, that the installed PEFT does not know and passes over.
    unknown: Mapping[str, Any] = field(default_factory=dict, compare=False)
    #: Key to where it is written; keys that nobody wrote have none.
    places: Mapping[str, Place] = field(default_factory=dict, compare=False)
    #: The file of a framework that it was read from; ``None`` for any other recipe.
    set_up: SetUp | None = field(default=None, compare=False)
    #: What else was read of the script or notebook that holds it; ``None`` for any other recipe.
    written: Written | None = field(default=None, compare=False, repr=False)
    #: What the file says and no key can have, and is left out; empty once it was stored.
    impossible: tuple[Impossible, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        """A line for each key, which is YAML."""
        lines = (f"{key}: {json.dumps(value, default=str)}" for key, value in self.values.items())
        return "\n".join(lines)

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def fill(self, values: Mapping[str, Any], origin: Origin = "proposed") -> Recipe:
        """A recipe in which the keys that nobody has set take these values."""
        new = {key: value for key, value in values.items() if key not in self.values}
        return self._with(new, origin)

    def override(self, values: Mapping[str, Any], origin: Origin) -> Recipe:
        """A recipe in which these values win."""
        return self._with(values, origin)

    def edit(self, edits: Iterable[Edit]) -> Recipe:
        """The recipe after the edits of a fix.

        An edit of ``task_type`` or a list to ``None`` sets it to ``None`` (PEFT knows the
        difference to "not set"); ``REMOVE`` takes the key out.
        """
        edits = list(edits)
        entries = [change for change in edits if change.key.startswith(ENTRY)]
        if entries:
            others = [change for change in edits if not change.key.startswith(ENTRY)]
            return self._with_entries(entries).edit(others)
        values, origins = dict(self.values), dict(self.origins)
        for change in edits:
            if change.value is REMOVE:
                values.pop(change.key, None)
                origins.pop(change.key, None)
            else:
                values[change.key] = check_value(change.key, change.value, "fix")
                origins[change.key] = "fix"
        changed = {change.key for change in edits}
        impossible = tuple(one for one in self.impossible if one.key not in changed)
        return replace(self, values=values, origins=origins, impossible=impossible)

    def place_of(self, key: str) -> Place | None:
        """Where a key stands, or where it would be added; ``None`` where that is not known."""
        if key in self.places or self.written is None:
            return self.places.get(key)
        known = BY_NAME.get(key)
        return self.written.parts.get(known.part if known is not None else "adapter")

    def adapter_values(self) -> dict[str, Any]:
        """The keyword arguments of PEFT's config class; copies, because PEFT extends lists in place
        (its SEQ_CLS wrapper appends to ``modules_to_save``)."""
        skip = {*OUTER_KEYS, *BOOKKEEPING_KEYS, RUNTIME_CONFIG, "peft_type"}
        if self.for_inference:
            skip.remove(INFERENCE_MODE)
        return {key: deepcopy(value) for key, value in self.values.items() if key not in skip}

    def config_arguments(self) -> dict[str, Any]:
        """:meth:`adapter_values` under the names that the config class of this kind of adapter has
        for them: LoHa's ``alpha`` is the recipe's ``lora_alpha``."""
        fields = config_fields(self.peft_type)
        return {name_in(fields, key): value for key, value in self.adapter_values().items()}

    @property
    def peft_type(self) -> str:
        return str(self.values.get("peft_type", "LORA"))

    def trained_tokens(self) -> list[int]:
        """Token ids whose embeddings are trained one by one, of whichever embeddings."""
        given = self.values.get("trainable_token_indices") or self.values.get("token_indices")
        lists = given.values() if isinstance(given, Mapping) else [given]
        found = (token for ids in lists if isinstance(ids, (list, tuple)) for token in ids)
        return sorted({token for token in found if type(token) is int and token >= 0})

    def invocation_tokens(self) -> list[int]:
        """Token ids in a row after which an activated LoRA acts, and before which it does not."""
        given = self.values.get("alora_invocation_tokens")
        found = given if isinstance(given, (list, tuple)) else ()
        return [token for token in found if type(token) is int and token >= 0]

    @property
    def for_inference(self) -> bool:
        """Whether PEFT is told to freeze what it puts in, as the config of a saved adapter does."""
        return self.values.get(INFERENCE_MODE) is True

    @property
    def mixed_precision(self) -> Literal["float16", "bfloat16"] | None:
        """The dtype of autocast that the recipe asks the Trainer for."""
        if self.values.get("fp16"):
            return "float16"
        return "bfloat16" if self.values.get("bf16") else None

    @property
    def quantized(self) -> Literal["4bit", "8bit"] | None:
        """How the recipe asks transformers to quantize the base model."""
        if self.values.get("load_in_4bit"):
            return "4bit"
        return "8bit" if self.values.get("load_in_8bit") else None

    def to_json(self) -> dict[str, Any]:
        """For reports: values, who set each, whether the rest is PEFT's business, and the names
        of the user's file."""
        return {
            "values": dict(self.values),
            "origins": dict(self.origins),
            "complete": self.complete,
            "names": dict(self.names),
            "unknown": dict(self.unknown),
            "places": {key: place.to_json() for key, place in self.places.items()},
            "set_up": self.set_up.to_json() if self.set_up else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        return cls(
            dict(data["values"]),
            dict(data["origins"]),
            bool(data["complete"]),
            names=dict(data.get("names", {})),
            unknown=dict(data.get("unknown", {})),
            places={key: Place.from_json(place) for key, place in data.get("places", {}).items()},
            set_up=SetUp.from_json(data["set_up"]) if data.get("set_up") else None,
        )

    def _with_entries(self, edits: Iterable[Edit]) -> Recipe:
        """The recipe after edits of entries of its file, which is read anew.

        Raises:
            InputError: it was not read from the file of a framework, or a value cannot be.
        """
        if self.set_up is None or self.set_up.read is None:
            raise InputError("recipe: was not read from a framework's file, and has no entries")
        entries = dict(self.set_up.entries)
        for edit in edits:
            name = edit.key.removeprefix(ENTRY)
            if edit.value is REMOVE:
                entries.pop(name, None)
            else:
                entries[name] = edit.value
        places = {name: place for name, place in self.set_up.places.items() if name in entries}
        read: Recipe = self.set_up.read(entries, places)
        assert read.set_up is not None
        own = {
            key: value
            for key, value in self.values.items()
            if self.origins.get(key) not in ("file", "default")
        }
        return replace(
            read.override(own, "fix"),
            origins={**read.origins, **{key: self.origins[key] for key in own}},
            file=self.file,
            set_up=replace(
                self.set_up, entries=entries, places=places, unknown=read.set_up.unknown
            ),
        )

    def _with(self, values: Mapping[str, Any], origin: Origin) -> Recipe:
        origins = {**self.origins, **dict.fromkeys(values, origin)}
        return replace(self, values={**self.values, **values}, origins=origins)


#: What frameworks call the model itself.
_MODEL = re.compile(r"((base|pretrained)_)?model(_name|_id|_path|_name_or_path)?")


def _hint(key: str, value: Any, known: frozenset[str], kind: str) -> str:
    """What somebody who wrote this unknown key has to do."""
    if _MODEL.fullmatch(key):
        return "the model is not part of a recipe: it is the MODEL argument"
    short = key.removeprefix("lora_")
    near = difflib.get_close_matches(key, known - BOOKKEEPING_KEYS, n=1, cutoff=0.6)
    if short in known or short in ALIASES:  # lora_rank, which is nearer to lora_bias
        near = [ALIASES.get(short, short)]
    if isinstance(value, Mapping) and not (near and near[0] in MAPPING_KEYS):
        return "keys are flat: put what is in it one level up"
    if near and near[0] != key:
        return f"did you mean {near[0]!r}?"
    return "see PEFT's LoraConfig" if kind == "LORA" else f"see PEFT's config of {kind}"


def make_recipe(
    values: Mapping[str, Any],
    *,
    where: str,
    origin: Origin,
    complete: bool = False,
    ignore_unknown: bool = False,
    of_file: bool = False,
) -> Recipe:
    """A checked recipe out of raw values.

    ``ignore_unknown`` keeps keys that nobody knows beside the recipe (``Recipe.unknown``) instead
    of refusing them: an ``adapter_config.json`` may have been written by a newer PEFT. ``of_file``:
    what a training program will read, too; an impossible value is kept for the rules.

    Raises:
        InputError: a key is unknown (with the nearest known one) or a value impossible.
    """
    checked: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    impossible: list[Impossible] = []
    kind = str(getattr(values.get("peft_type"), "value", values.get("peft_type", "LORA")))
    kind = kind.upper().rpartition(".")[2]
    for raw_key, value in values.items():
        if not isinstance(raw_key, str):
            raise InputError(f"{where}: key {raw_key!r} is not a string; keys are PEFT's names")
        key = ALIASES.get(raw_key, raw_key)
        if not is_key_of(kind, key):
            if ignore_unknown:
                unknown[raw_key] = value
                continue
            hint = _hint(key, value, known_keys(kind), kind)
            raise InputError(f"{where}: unknown key {raw_key!r}; {hint}")
        if key in checked:
            raise InputError(f"{where}: {key!r} is given twice (as {raw_key!r} too)")
        # OFT: the rank follows from the block size. Of other kinds PEFT says what it makes of 0.
        as_is = key == "r" and type(value) is int and value == 0 and kind != "LORA"
        try:
            checked[key] = value if as_is else check_value(key, value, where)
        except InputError as error:
            if not of_file or key not in FOUND_OUT_KEYS:
                raise
            impossible.append(Impossible(key, value, str(error)))
    for one, other in EXCLUSIVE:
        if checked.get(one) and checked.get(other):
            raise InputError(f"{where}: {one} and {other} exclude each other; keep one")
    names = {ALIASES[name]: name for name in values if name in ALIASES}
    return Recipe(
        checked,
        dict.fromkeys(checked, origin),
        complete,
        names=names,
        unknown=unknown,
        impossible=tuple(impossible),
    )


def asks_for_adapter(recipe: Recipe) -> bool:
    """Whether somebody decided on an adapter: a file of PEFT's, or any key but ``task_type``."""
    decided = (key for key in recipe.adapter_values() if recipe.origins.get(key) != "proposed")
    return recipe.complete or any(key != "task_type" for key in decided)
