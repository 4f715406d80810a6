"""Methods that a program calls on objects whose installed class has none of that name, or refuses
the call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.objects import (
    is_loader,
    is_trainer,
    loader_of,
    makers,
    text_of,
    top,
    uses_unsloth,
    wrappers,
)
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.installed.constructor_use import attributes_of
from lora_doctor.static.installed.model_methods import is_of_peft_alone, refuses_quantized
from lora_doctor.static.installed.signatures import class_statement
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Known, Reference, Thing, Value

_CHAIN = 20
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
    #: ``absent``: the class has none; ``peft``: only PEFT's models have it; ``quantized``: it
    #: refuses weights in 4 or 8 bits.
    why: str
    #: Where it is called.
    place: Place
    #: Where the object was made.
    made: Place
    #: Where the installed source raises; empty for an absent one.
    source: str = ""


def absent_methods(setup: Setup) -> Iterator[AbsentMethod]:
    """Each such call that surely runs; none where another release is pinned, or Unsloth changes the
    classes."""
    calls = setup.program.calls
    if uses_unsloth(setup.program):
        return
    pinned = pinned_otherwise(setup.program)
    for call in calls:
        if not call.certain or call.guarded or not isinstance(call.receiver, Thing):
            continue
        if call.method in call.receiver.attributes:
            continue
        found = _of_model(call, pinned) or _of_class(call, pinned)
        if found is not None:
            yield found


def _of_model(call: Call, pinned: frozenset[str]) -> AbsentMethod | None:
    """Of a model of transformers that PEFT does not stand around."""
    receiver = call.receiver
    loader = loader_of(receiver)
    direct = [one for one in makers(receiver) if one.receiver is not None]
    if loader is None or wrappers(receiver) or pinned & {"transformers", "peft"}:
        return None
    if direct or not is_loader(loader) or top(loader.name) != _MODELS or _is_own_code(loader):
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


def _is_own_code(loader: Call) -> bool:
    """Whether the class may be one of the model's repository, with methods of its own."""
    trusts = loader.value("trust_remote_code")
    return loader.open is not None or not (
        trusts is None or (isinstance(trusts, Known) and not trusts.value)
    )


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


def _of_class(call: Call, pinned: frozenset[str]) -> AbsentMethod | None:
    """Of an object whose class is known: a trainer, or rows of ``datasets``."""
    owner, made = _class_of(call.receiver)
    if made is None or top(owner) in pinned or (owner != _ROWS and "transformers" in pinned):
        return None
    has = attributes_of(owner)
    if has is None or call.method in has:
        return None
    return AbsentMethod(call.method, owner.rpartition(".")[2], "absent", call.place, made.place)


#: What ``train`` of a Trainer returns.
_TRAINED = "transformers.TrainOutput"
_ROWS, _STREAM = "datasets.Dataset", "datasets.IterableDataset"


def _class_of(value: Value | None) -> tuple[str, Call | None]:
    """The dotted class of an object, and the call that made it."""
    steps: list[str] = []
    for _ in range(_CHAIN):
        if not isinstance(value, Thing) or not value.call.certain:
            break
        call = value.call
        if is_trainer(call) and call.receiver is None and call.heir is None and not steps:
            return call.name, call
        if _is_training(call) and not steps:
            return _TRAINED, call
        if call.name == "datasets.load_dataset":
            return _of_rows(call, steps[::-1]), call
        steps.append(call.method)
        value = call.receiver
    return "", None


def _is_training(call: Call) -> bool:
    """``train`` of a Trainer of transformers itself."""
    trainer = call.receiver.call if isinstance(call.receiver, Thing) else None
    if call.method != "train" or trainer is None or trainer.heir is not None:
        return False
    return is_trainer(trainer) and top(trainer.name) == "transformers"


def _of_rows(call: Call, steps: list[str]) -> str:
    """The class of one split, behind methods that return the same class; empty where that is not
    known."""
    streams = call.value("streaming")
    if text_of(call.value("split", 3)) is None or call.open is not None:
        return ""
    if streams is not None and not isinstance(streams, Known):
        return ""
    name = _STREAM if isinstance(streams, Known) and streams.value else _ROWS
    kind = name.rpartition(".")[2]
    node = class_statement("datasets", kind)
    returned = {
        one.name: ast.unparse(one.returns).strip("'\"")
        for one in (node.body if node is not None else [])
        if isinstance(one, ast.FunctionDef) and one.returns is not None
    }
    return name if all(returned.get(step) == kind for step in steps) else ""
