"""What the file of a training framework amounts to: entries, defaults and the framework's own ways.

A format in ``formats/`` that is a framework's has a ``FRAMEWORK`` beside its ``SPELLINGS``. Where
the file says nothing the framework's default decides, and it is read off the installed framework.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_doctor.errors import InputError
from lora_doctor.recipe.files.remark import Remark
from lora_doctor.recipe.files.spelling import Spelling, Spellings
from lora_doctor.recipe.keys import EXCLUSIVE, OUTER_KEYS, check_value, config_fields, name_in
from lora_doctor.recipe.recipe import Recipe, make_recipe
from lora_doctor.recipe.set_up import SetUp
from lora_doctor.static.installed.framework_fields import Fields, Sources, fields_of
from lora_doctor.static.place import Place
from lora_doctor.text import must_be

#: How alike a mistyped entry and the one that was meant are.
_NEAR = 0.75

Values = dict[str, Any]
Entries = Mapping[str, Any]


def _nothing(values: Values, entries: Entries) -> None:
    """Most frameworks have ways of their own; this one has none."""


@dataclass(frozen=True)
class Framework:
    """A training framework that reads a set-up."""

    #: Where its arguments are.
    sources: Sources
    #: The entry that names the model.
    model: str
    #: The entry with its revision.
    revision: str
    #: What becomes of an entry that it does not have.
    unknown: Literal["refused", "dropped"]
    #: Entries that some release has and its classes do not show, or that mean something here.
    also: frozenset[str] = frozenset()
    #: Whether the values of a file stay what YAML or JSON makes of them; otherwise a text is turned
    #: into the number that its argument is.
    keeps_texts: bool = False
    #: Entries of older releases, each with its name now.
    renamed: Mapping[str, str] = field(default_factory=dict)
    #: What it makes of several entries together, defaults included: changes the recipe's values.
    finish: Callable[[Values, Entries], None] = _nothing
    #: The entries that set a key where one spelling does not do: ``REMOVE`` takes one out.
    #: ``None``: the spelling does.
    write: Callable[[str, Any, Entries], Values | None] = lambda key, value, entries: None
    #: What it does with entries that do not go together.
    remarks: Callable[[Entries], Iterable[Remark]] = lambda entries: ()
    #: Entries with which it freezes weights after PEFT has wrapped the model, each with what tells
    #: of the name of a weight there whether it does.
    freezes: Callable[[Entries], Mapping[str, Callable[[str], bool]]] = lambda entries: {}
    #: Entries with the files and folders that they name; what is on a hub may be among them.
    paths: Callable[[Entries], Iterable[tuple[str, str]]] = lambda entries: ()
    #: The saved adapter that it loads onto the model, where it puts no new one on beside it.
    saved_adapter: Callable[[Entries], str | None] = lambda entries: None
    #: The model, where the file leaves it out and it is read off what was saved with the adapter:
    #: what names it, and its name; the folders are those in which a path may begin.
    saved_model: Callable[[Entries, Iterable[Path]], tuple[Path, str] | None] = (
        lambda entries, folders: None
    )
    #: Whether it only merges or uses that adapter, and trains nothing.
    only_uses: Callable[[Entries], bool] = lambda entries: False
    #: The entry that has it merge adapters into the model; ``None`` where it is to merge none.
    merges: Callable[[Entries], str | None] = lambda entries: None
    #: What it raises when the checkpoint is quantized, whatever PEFT could do; empty where it lets
    #: PEFT decide.
    refuses_quantized: str = ""
    #: The checkpoint with whose state its Trainer goes on.
    resumes: Callable[[Entries], Any] = lambda entries: entries.get("resume_from_checkpoint")
    #: The entry that names data sets by what a file registers, and the path of that file.
    registry: Callable[[Entries], tuple[str, str] | None] = lambda entries: None
    #: The most pixels to which it scales an image, each with what sets it.
    image_pixels: Callable[[SetUp], Iterable[tuple[str, int]]] = lambda set_up: ()
    #: Whether it can shard 8-bit weights, whose statistics FSDP leaves behind.
    shards_eight_bits: Callable[[Entries], bool] = lambda entries: False
    #: Whether it quantizes fused experts, which transformers leaves as they are.
    quantizes_experts: Callable[[Entries], bool] = lambda entries: False
    #: The plugins that the entries switch on, by the names of their folders; empty for one that
    #: is not its own.
    plugins: Callable[[Entries], set[str]] = lambda entries: set()
    #: Whether it makes the inputs of checkpointed layers need a gradient, whatever transformers
    #: does.
    enables_input_gradients: bool = False
    #: Entries that name code of the user's, which may register templates and models.
    extended_by: tuple[str, ...] = ()
    #: The programs of its command line.
    commands: tuple[str, ...] = ()

    def fields(self) -> Fields | None:
        return fields_of(self.sources)

    def unknown_entries(self, entries: Entries) -> dict[str, str]:
        """The entries that the framework does not have, each with the one that was meant (empty
        where none is near). An entry without a value counts only where it is refused."""
        fields = self.fields()
        if fields is None:
            return {}
        known = fields.names | self.also
        switched_on = self.plugins(entries)
        for folder, names in fields.plugins.items():
            known |= names if folder in switched_on else frozenset()
        written = list(entries)
        unused = known.difference(written)
        meant = {
            name: self.renamed.get(name) or _meant(name, unused)
            for name in written
            if name not in known and (entries[name] is not None or self.unknown == "refused")
        }
        if "" in switched_on:  # a plugin of somebody else's may have arguments of its own
            return {name: near for name, near in meant.items() if near}
        return meant


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), sorted(known), n=1, cutoff=_NEAR)
    return near[0] if near else ""


def framework_recipe(
    name: str,
    framework: Framework,
    spellings: Spellings,
    entries: Entries,
    places: Mapping[str, Place],
    where: str,
) -> Recipe:
    """The recipe that a framework makes of these entries.

    Raises:
        InputError: a value is none that its entry can have.
    """
    entries, places = _switched_off(framework, entries, places)
    values, origins, names = _read(framework, spellings, entries, places, where)
    checked = make_recipe(values, where=where, origin="default", complete=True)
    return Recipe(
        checked.values,
        {key: origins.get(key, "default") for key in checked.values},
        complete=True,
        names={key: entry for key, entry in names.items() if key != entry},
        places={key: places[entry] for key, entry in names.items() if entry in places},
        set_up=SetUp(
            name,
            dict(entries),
            dict(places),
            unknown=framework.unknown_entries(entries),
            read=lambda others, at: framework_recipe(name, framework, spellings, others, at, where),
        ),
    )


def _switched_off(
    framework: Framework, entries: Entries, places: Mapping[str, Place]
) -> tuple[Entries, Mapping[str, Place]]:
    """The entries with ``--no_NAME`` of a command line as ``NAME`` that is off: the parser of
    transformers has it for each switch that is on by default."""
    fields = framework.fields()
    found = dict(entries)
    at = dict(places)
    for name in entries if fields is not None else ():
        switch = name.removeprefix("no_")
        place = places.get(name)
        by_file = place is None or place.file.endswith((".yaml", ".yml", ".json"))
        if switch == name or by_file or entries[name] is not True or fields is None:
            continue
        on = fields.defaults.get(switch, True) is True
        if name not in fields.names and switch in fields.names and on:
            del found[name]
            found[switch] = False
            at[switch] = at.pop(name)
    return found, at


def excluded(framework: Framework, spellings: Spellings, entries: Entries) -> list[tuple[str, str]]:
    """Pairs of entries that are both on where the training arguments allow one, and of which the
    framework takes none out itself."""
    values, _, names = _read_all(framework, spellings, entries, {}, framework.model)
    return [
        (names[one], names[other])
        for one, other in _both_on(values)
        if one in names and other in names
    ]


def _both_on(values: Values) -> list[tuple[str, str]]:
    return [pair for pair in EXCLUSIVE if all(values.get(key) for key in pair)]


def _read(
    framework: Framework,
    spellings: Spellings,
    entries: Entries,
    places: Mapping[str, Place],
    where: str,
) -> tuple[Values, dict[str, Any], dict[str, str]]:
    """Values, origins, and the names of the entries, of the keys that entries and defaults set."""
    values, origins, names = _read_all(framework, spellings, entries, places, where)
    for one, other in _both_on(values):  # which is told as refused
        del values[other if one in names and other not in names else one]
    for key in _off_and_not_here(values, origins):
        del values[key]
    return values, origins, names


def _read_all(
    framework: Framework,
    spellings: Spellings,
    entries: Entries,
    places: Mapping[str, Place],
    where: str,
) -> tuple[Values, dict[str, Any], dict[str, str]]:
    """As :func:`_read`, with what excludes each other and what is off by itself."""
    fields = framework.fields()
    defaults = dict(fields.defaults) if fields else {}
    values: Values = {}
    origins: dict[str, Any] = {}
    names: dict[str, str] = {}
    for entry, raw in {**defaults, **entries}.items():
        for spelling in spellings.of_name(entry):
            written = entry in entries
            if raw is None or (spelling.key in names and not written):
                continue
            value = _value(spelling, raw, places.get(entry) or where)
            if value is None:
                continue
            values[spelling.key] = value
            origins[spelling.key] = "file" if written else "default"
            if written:
                names[spelling.key] = entry
    framework.finish(values, {**defaults, **entries})
    if framework.enables_input_gradients and values.get("gradient_checkpointing"):
        values["enable_input_require_grads"] = True
    return values, origins, names


def _off_and_not_here(values: Values, origins: Mapping[str, Any]) -> list[str]:
    """What the framework leaves off by default, and the installed PEFT does not have at all (DoRA
    before PEFT 0.9): there it is off by itself."""
    known = config_fields(str(values.get("peft_type", "LORA")))
    if known is None:
        return []
    return [
        key
        for key, value in values.items()
        if not value
        and origins.get(key) != "file"
        and key not in OUTER_KEYS
        and name_in(known, key) not in known
    ]


def _value(spelling: Spelling, raw: Any, where: object) -> Any:
    """The recipe's value in its normal form; ``None`` where the entry sets nothing."""
    try:
        value = spelling.read(raw)
    except ValueError as error:
        raise InputError(f"{where}: {spelling.name} {must_be(error)}, not {raw!r:.60}") from None
    return value if value is None else check_value(spelling.key, value, f"{where}")
