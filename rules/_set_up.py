"""What rules about the file of a training framework share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    ENTRY,
    Case,
    Edit,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Remark,
    Rule,
    SetUp,
    Severity,
    framework_named,
    remarks_of,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import ModuleGroup

#: What a remark may mean for the user, by its kind.
_MAY = {
    "unread": "{format} may ignore {names}",
    "packing": "With {names}, {format} may let packed samples attend to each other",
    "refused": "{format} may refuse {names}",
}


_FILES = (".yaml", ".yml", ".json")


def remarks(case: Case, kind: str) -> Iterator[Remark]:
    """What the framework does with entries that do not go together."""
    set_up = case.set_up
    in_file = [name for name, place in set_up.places.items() if place.file.endswith(_FILES)]
    found = remarks_of(set_up.format, set_up.entries, in_file)
    return (one for one in found if one.kind == kind)


def located(set_up: SetUp, name: str) -> Location:
    """Where an entry stands."""
    place = set_up.places.get(name)
    if place is None:
        return Location("file", set_up.files[0] if set_up.files else set_up.format)
    return Location("file", place.file, place.line)


def all_frozen(freezes: Callable[[str], bool], groups: Iterable[ModuleGroup]) -> bool:
    """Whether all adapters of these groups are frozen, whatever the numbers in their paths."""
    return all(
        freezes(weight_name(group.pattern.replace("*", str(number), 1).replace("*", "0")))
        for group in groups
        for number in range(group.count)
    )


def weight_name(path: str) -> str:
    """How a weight of a layer's adapter is called in the model that PEFT has wrapped."""
    return f"base_model.model.{path}.lora_A.default.weight"


def freezing(case: Case) -> Mapping[str, Callable[[str], bool]]:
    """Entries of the set-up with which its framework freezes weights by name; empty without one."""
    if not case.has("set_up"):
        return {}
    return framework_named(case.set_up.format).freezes(case.set_up.entries)


def written(set_up: SetUp, name: str) -> Measurement:
    """An entry as evidence."""
    value = set_up.entries.get(name)
    return Measurement(name, "(not set)" if value is None else value,
                       str(set_up.places.get(name) or "framework's default"))  # fmt: skip


def finding_of(rule: Rule, case: Case, remark: Remark, severity: Severity) -> Finding:
    """The finding that a remark of the framework makes. Remarks are concluded from the source of
    the framework, of which nothing is run."""
    set_up = case.set_up
    edits = tuple(Edit(f"{ENTRY}{name}", value) for name, value in remark.entries)
    safety = "manual" if not edits else "safe" if remark.safe else "unsafe"
    may = _MAY[remark.kind].format(format=set_up.format, names=", ".join(remark.names))
    return rule.finding(
        severity,
        f"{may}: according to its source, it {remark.what}.",
        location=located(set_up, remark.names[0]),
        evidence=(
            *(written(set_up, name) for name in remark.names),
            Measurement("what it does", remark.what, f"{set_up.format}: {remark.source}"),
        ),
        proof=Proof("inferred", f"from the source of {set_up.format}"),
        fixes=(Fix(remark.fix, safety, edits),),  # type: ignore[arg-type]
    )
