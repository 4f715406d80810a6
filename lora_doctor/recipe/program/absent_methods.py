"""Methods that a program calls on objects whose installed class has none of that name, or refuses
the call."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.objects import (
    is_loader,
    loader_of,
    makers,
    top,
    uses_unsloth,
    wrappers,
)
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.value_types import (
    MODEL,
    PEFT_MODEL,
    TOKENIZER,
    ValueType,
    has_own_code,
    type_of,
)
from lora_doctor.static.installed.class_members import Member, returned_by
from lora_doctor.static.installed.constructor_use import attributes_of
from lora_doctor.static.installed.model_methods import (
    is_defined_by_an_heir,
    is_in_no_model,
    is_in_no_tokenizer,
    is_of_peft_alone,
    refuses_quantized,
)
from lora_doctor.static.place import Place
from lora_doctor.static.program.program import Program
from lora_doctor.static.program.values import AttributeRead, Call, Known, Reference, Thing

_MODELS = "transformers"
#: What a dtype of torch is called, as an argument of ``to``.
_DTYPES = ("float16", "bfloat16", "half", "float32", "float", "float64", "double")


@dataclass(frozen=True)
class AbsentMethod:
    """A call of such a method."""

    #: The name of the method.
    method: str
    #: The class of the object.
    owner: str
    #: ``absent``: the class has none; ``attribute``: one that is read and not there; ``peft``: only
    #: PEFT's models have it; ``nowhere``: no class of
    #: a model or tokenizer has it; ``quantized``: it refuses weights in 4 or 8 bits; ``nothing``:
    #: there is no object, since the call that ``owner`` names returned nothing; ``property``: it is
    #: a value and no method; ``method``: it is a method, and an item of it is taken; ``unpacked``:
    #: the object is one, and is taken apart into several.
    why: str
    #: Where it is called.
    place: Place
    #: Where the object was made.
    made: Place
    #: Where the installed source raises; empty for an absent one.
    source: str = ""


def absent_methods(setup: Setup) -> Iterator[AbsentMethod]:
    """Each such call, or attribute that is read, that surely runs; none where another release is
    pinned, or Unsloth changes the classes."""
    if uses_unsloth(setup.program):
        return
    pinned = pinned_otherwise(setup.program)
    told: set[Place] = set()  # of an object that is none, the first use is enough
    for call in setup.program.calls:
        if not call.certain or call.guarded or not isinstance(call.receiver, Thing):
            continue
        if call.method in call.receiver.attributes:
            continue
        found = _of_model(call, pinned) or _of_class(setup.program, call, pinned)
        if found is not None and (found.why != "nothing" or found.made not in told):
            told |= {found.made}
            yield found
    yield from _of_reads(setup.program, pinned, told)


def _of_model(call: Call, pinned: frozenset[str]) -> AbsentMethod | None:
    """Of a model of transformers that PEFT does not stand around."""
    receiver = call.receiver
    loader = loader_of(receiver)
    direct = [one for one in makers(receiver) if one.receiver is not None]
    if loader is None or wrappers(receiver) or pinned & {"transformers", "peft"}:
        return None
    if direct or not is_loader(loader) or top(loader.name) != _MODELS or has_own_code(loader):
        return None
    if _casts(call):
        source = refuses_quantized(call.method) if _is_quantized(loader) else None
        if source is None:
            return None
        return AbsentMethod(
            call.method, "PreTrainedModel", "quantized", call.place, loader.place, source
        )
    if not is_of_peft_alone(call.method):
        return None
    return AbsentMethod(call.method, "PreTrainedModel", "peft", call.place, loader.place)


def _casts(call: Call) -> bool:
    """Whether a call changes the dtype of all weights."""
    if call.method in ("half", "float"):
        return not call.positional and not call.keywords
    given = [one.value for one in (*call.positional, *call.keywords.values())]
    return call.method == "to" and any(
        isinstance(one, Reference) and one.name.rpartition(".")[2] in _DTYPES
        and top(one.name) == "torch"
        for one in given
    )  # fmt: skip


def _is_quantized(loader: Call) -> bool:
    """Whether bitsandbytes holds its weights in 4 or 8 bits."""
    given = loader.value("quantization_config")
    asked = given.call if isinstance(given, Thing) else loader
    if asked is not loader and asked.method != "BitsAndBytesConfig":
        return False
    flags = [asked.value(name) for name in ("load_in_4bit", "load_in_8bit")]
    return any(isinstance(one, Known) and one.value is True for one in flags)


def _of_class(program: Program, call: Call, pinned: frozenset[str]) -> AbsentMethod | None:
    """Of an object whose class is known."""
    owner = type_of(call.receiver)
    if owner is None or not _is_as_installed(owner, pinned) or not owner.made.certain:
        return None
    if owner.is_nothing:
        return _on_nothing(owner, call.method, call.place)
    member = owner.member(call.method)
    if member is not None:
        kind = returned_by(member.package, member.node) if member.is_property else None
        if kind is None or kind[0] != "builtins" or not _is_sure(owner, member):
            return None
        what = "None" if kind[1] == "None" else f"a {kind[1]}"
        return _found(owner, call.method, "property", call.place, what)
    if not _lacks(program, owner, call.method):
        return None
    why = "absent" if owner.is_exact else "nowhere"
    return _found(owner, call.method, why, call.place)


def _of_reads(program: Program, pinned: frozenset[str], told: set[Place]) -> Iterator[AbsentMethod]:
    """Attributes that are read and not there, or that are methods of which an item is taken."""
    for read in program.attribute_reads:
        owner = type_of(read.owner) if read.certain and not read.guarded else None
        if owner is None or not _is_as_installed(owner, pinned) or not owner.made.certain:
            continue
        found = _of_read(owner, read)
        if found is not None and (found.why != "nothing" or found.made not in told):
            told |= {found.made}
            yield found


def _of_read(owner: ValueType, read: AttributeRead) -> AbsentMethod | None:
    if owner.is_nothing:
        return _on_nothing(owner, read.name, read.span.place)
    if read.kind == "unpacked":
        made = owner.made.value("output_loading_info") is None
        return _found(owner, "", "unpacked", read.span.place) if made and _is_whole(owner) else None
    member = owner.member(read.name) if read.kind != "item" else None
    if read.kind == "indexed" and member is not None and not member.is_property:
        sure = _is_sure(owner, member)
        return _found(owner, read.name, "method", read.span.place) if sure else None
    if read.kind != "attribute" or not owner.is_exact or owner.of[0] == "builtins":
        return None
    has = attributes_of(".".join(owner.of))
    if has is None or read.name in has or read.name.startswith("__"):
        return None
    return _found(owner, read.name, "attribute", read.span.place)


def _is_whole(owner: ValueType) -> bool:
    """Whether objects of the class can not be iterated over."""
    if owner.of in (MODEL, PEFT_MODEL):
        return owner.member("__iter__") is None and owner.member("__getitem__") is None
    has = (
        attributes_of(".".join(owner.of)) if owner.is_exact and owner.of[0] != "builtins" else None
    )
    return has is not None and not has & {"__iter__", "__getitem__", "__next__"}


def _on_nothing(owner: ValueType, name: str, place: Place) -> AbsentMethod | None:
    """Of what a method returned that returns nothing."""
    before = type_of(owner.made.receiver)
    member = before.member(owner.made.method) if before is not None else None
    if before is not None and (member is None or not _is_sure(before, member)):
        return None
    return AbsentMethod(name, owner.made.method, "nothing", place, owner.made.place)


def _is_sure(owner: ValueType, member: Member) -> bool:
    """Whether no heir of the class has another one of this name."""
    return owner.is_exact or not is_defined_by_an_heir(
        member.package, member.owner, member.node.name
    )


def _lacks(program: Program, owner: ValueType, name: str) -> bool:
    """Whether objects of the class surely have nothing of this name. Splits of a data set have a
    rule of their own."""
    if owner.name.endswith("DatasetDict") or name.startswith("__"):
        return False
    if owner.of[0] == "builtins":
        return not hasattr(getattr(builtins, owner.name), name)
    if owner.is_exact:
        has = attributes_of(".".join(owner.of))
        return has is not None and name not in has
    if any(re.search(rf"\b{re.escape(name)}\b(?!\()", unit.python) for unit in program.units):
        return False  # the program may set it itself
    if owner.of == TOKENIZER:
        return is_in_no_tokenizer(name)
    return owner.of in (MODEL, PEFT_MODEL) and is_in_no_model(name)


def _is_as_installed(owner: ValueType, pinned: frozenset[str]) -> bool:
    """Whether nothing that its class depends on is pinned to another release."""
    packages = {owner.of[0], top(owner.made.name)}
    return not packages & pinned and ("datasets" in packages or "transformers" not in pinned)


def _found(owner: ValueType, name: str, why: str, place: Place, source: str = "") -> AbsentMethod:
    return AbsentMethod(name, owner.name, why, place, owner.made.place, source)
