"""Arguments of a program's calls that are of another kind than the installed class needs there, or
that are given twice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_doctor.recipe.program.made_arguments import makes_arguments
from lora_doctor.recipe.program.objects import (
    class_of,
    is_optimizer,
    loader_of,
    text_of,
    top,
    uses_unsloth,
    wrappers,
)
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.value_types import (
    MODEL,
    PACKAGES,
    PEFT_MODEL,
    signature_of_call,
    type_of,
)
from lora_doctor.static.installed.constructor_use import (
    Use,
    attributes_of,
    constructor_uses,
)
from lora_doctor.static.installed.signatures import Signature
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Argument, Call, Instance, Items, Known, Thing, Value

#: What the annotation of a parameter says of the things that it takes.
_TAKEN: Mapping[str, re.Pattern[str]] = {
    "model": re.compile(r"PreTrainedModel|Module\b|PeftModel"),
    "tokenizer": re.compile(r"Tokenizer|Processor|FeatureExtract"),
    "training arguments": re.compile(r"TrainingArguments|(?<!Peft)(?<!Pre[Tt]rained)Config\b"),
    "collator": re.compile(r"DataCollator\b"),
    "data set": re.compile(r"Dataset\b"),
    "adapter config": re.compile(r"PeftConfig"),
    "callback": re.compile(r"TrainerCallback"),
    "optimizer": re.compile(r"Optimizer"),
}
_OF_TRAINING = "TrainingArguments"
_ANYTHING = re.compile(r"\bAny\b|\bobject\b|Callable|Protocol")
_NUMBERS = frozenset({"int", "float", "Tensor", "bool"})
_ITERATED = frozenset({"Iterable", "Sampler", "Sequence"})
#: That more than one object may be given.
_SEVERAL = re.compile(r"\b(?:[lL]ist|[tT]uple|Sequence|Iterable|[dD]ict|Mapping)\b")
_CHAIN = 20


@dataclass(frozen=True)
class MisplacedArgument:
    """An argument with which the call raises."""

    #: What is called.
    callee: str
    #: The parameter.
    name: str
    #: ``twice``, ``many``, of another ``kind``, or what the class does with it that this cannot:
    #: ``attribute``, ``unpacked``, ``added``.
    why: str
    #: What is given: ``a model``.
    given: str
    #: What is needed there.
    needed: str
    #: Where the argument stands.
    place: Place
    #: Where the installed class says so.
    source: str


def misplaced_arguments(setup: Setup) -> Iterator[MisplacedArgument]:
    """At most one of each call that surely runs; none where another release is pinned, or Unsloth
    changes the classes."""
    calls = setup.program.calls
    if uses_unsloth(setup.program):
        return
    pinned = pinned_otherwise(setup.program)
    seen = set()
    for call in calls:
        if top(call.name) not in PACKAGES or pinned & {top(call.name), "transformers"}:
            continue
        plain = call.certain and not call.guarded and call.open is None and call.heir is None
        if not plain or call.span in seen:
            continue
        seen.add(call.span)
        found = next(_of_call(call), None)
        if found is not None:
            yield found


def _of_call(call: Call) -> Iterator[MisplacedArgument]:
    is_class = call.method[:1].isupper() and call.receiver is None
    callee, signature = signature_of_call(call) or ("", None)
    if signature is None:
        yield from _of_texts(call)
        return
    source = f"the signature of {callee}"
    if signature.positional is None:
        yield from _missing(callee, signature, call, source)
        return
    names = signature.positional
    if len(call.positional) > len(names):
        extra = call.positional[len(names)]
        yield MisplacedArgument(
            callee, "", "many", str(len(call.positional)), str(len(names)),
            extra.span.place, source,
        )  # fmt: skip
        return
    given = dict(zip(names, call.positional, strict=False))
    for name in given.keys() & call.keywords.keys():
        place = call.keywords[name].whole.place
        yield MisplacedArgument(callee, name, "twice", "", "", place, source)
    yield from _missing(callee, signature, call, source)
    for name, argument in {**given, **call.keywords}.items():
        yield from _of_kind(call, signature, name, argument)
        if is_class:
            yield from _of_use(call, name, argument)
            yield from _of_torch(call, signature, name, argument)


def _of_texts(call: Call) -> Iterator[MisplacedArgument]:
    """``model.generate("…")``: a text where the installed method has a tensor."""
    owner = type_of(call.receiver) if call.method == "generate" else None
    member = owner.member(call.method) if owner is not None else None
    if owner is None or owner.of not in (MODEL, PEFT_MODEL):
        return
    argument = call.argument("inputs", 0) or call.argument("input_ids")
    values = argument.value if argument is not None else None
    one = values.items[:1] if isinstance(values, Items) and values.open is None else [values]
    if argument is not None and any(text_of(each) is not None for each in one):
        where = member.place if member is not None else "installed source"
        yield MisplacedArgument(
            f"{call.method} of a model", argument.name or "inputs", "kind", "text",
            "token ids, as a tokenizer makes them,", argument.span.place, where,
        )  # fmt: skip


def _missing(
    callee: str, signature: Signature, call: Call, source: str
) -> Iterator[MisplacedArgument]:
    """A required argument that is not given; not beside one that is not known (LD523)."""
    if signature.positional is None and call.positional:
        return
    given = {*(signature.positional or ())[: len(call.positional)], *call.keywords}
    lacking = [name for name in signature.required if name not in given]
    if lacking and (signature.open or given <= {*signature.names}):
        yield MisplacedArgument(callee, lacking[0], "missing", "", "", call.place, source)


def _of_kind(
    call: Call, signature: Signature, name: str, argument: Argument
) -> Iterator[MisplacedArgument]:
    """By the annotation of the parameter."""
    annotation = signature.annotations.get(name, "")
    taken = [kind for kind, marks in _TAKEN.items() if marks.search(annotation)]
    if top(call.name) != "trl" and _OF_TRAINING not in annotation:
        taken = [one for one in taken if one != "training arguments"]  # another config
    if not taken or _ANYTHING.search(annotation):
        return
    kind = kind_of(argument.value)
    given = _an(kind) if kind and kind not in taken else _other(annotation, argument.value)
    if given:
        yield MisplacedArgument(
            call.method, name, "kind", given, " or ".join(_an(one) for one in taken),
            argument.span.place, f"`{name}: {annotation}`",
        )  # fmt: skip


def _of_torch(
    call: Call, signature: Signature, name: str, argument: Argument
) -> Iterator[MisplacedArgument]:
    """A text where a class of torch reckons with a number; a number where it takes what can be
    iterated over. Settings of the other libraries are tried on their classes (LD223)."""
    annotation = signature.annotations.get(name, "")
    given = argument.value.value if isinstance(argument.value, Known) else None
    named = {*re.findall(r"\w+", annotation)} - {"None", "Optional", "Union"}
    if top(call.name) != "torch" or not named:
        return
    needed = ""
    if isinstance(given, str) and named <= _NUMBERS:
        needed = "a number"
    elif type(given) in (int, float) and named & _ITERATED and not named & _NUMBERS:
        needed = "what can be iterated over"
    if needed:
        yield MisplacedArgument(
            call.method, name, "kind", f"{given!r}", needed, argument.span.place,
            f"`{name}: {annotation}`",
        )  # fmt: skip


def _other(annotation: str, value: Value) -> str:
    """What is given, where it is no object of any kind that the annotation names: what a method
    returned beside the object, or a tuple, as a comma behind the object makes one."""
    if isinstance(value, Items) and value.kind == "tuple" and value.open is None:
        one_of_them = [kind_of(one) for one in value.items]
        listed = _SEVERAL.search(annotation) or not any(one_of_them)
        return "" if listed else f"a tuple of {_an(next(filter(None, one_of_them)))}"
    found = type_of(value)
    if found is None or not found.made.certain:
        return ""
    if found.is_nothing:
        return f"the None that `{found.made.method}` returns"
    plain = found.of[0] == "builtins" and found.name not in ("list", "dict", "str")
    if plain or found.name.startswith("_") or found.name == "TrainOutput":
        return f"the {found.name} that `{found.made.method}` returns"
    return ""


def _of_use(call: Call, name: str, argument: Argument) -> Iterator[MisplacedArgument]:
    """By what the constructor does with it."""
    kind = kind_of(argument.value)
    for use in constructor_uses(call.name, name) if kind or _is_items(argument.value) else ():
        given, needed = _unfit(use, kind, argument.value)
        if given:
            yield MisplacedArgument(
                call.method, name, use.kind, given, needed, argument.span.place, use.place
            )


def _unfit(use: Use, kind: str, value: Value) -> tuple[str, str]:
    """What is given and what is needed, where the use of it raises; empty where it does not."""
    listed = value if isinstance(value, Items) and value.open is None else None
    if use.kind == "unpacked":
        if listed is not None and str(len(listed.items)) != use.what:
            return f"a {listed.kind} of {len(listed.items)}", f"a tuple of {use.what}"
        return (
            (_an(kind), f"a tuple of {use.what}") if kind in ("optimizer", "callback") else ("", "")
        )
    if use.kind == "added":
        if listed is not None and listed.kind != "list":
            return f"a {listed.kind}", "a list"
        return (_an(kind), "a list") if kind == "callback" else ("", "")
    if kind != "training arguments" or not isinstance(value, Thing) or use.what in value.attributes:
        return "", ""
    has = attributes_of(value.call.name) if value.call.heir is None else None
    return (value.call.method, use.what) if has is not None and use.what not in has else ("", "")


def _is_items(value: Value) -> bool:
    return isinstance(value, Items)


def kind_of(value: Value | None) -> str:
    """What a value is, of the kinds that annotations tell; empty where that is not known."""
    if isinstance(value, Instance):
        return "callback" if value.of is not None and _inherits_callback(value.of.bases) else ""
    if not isinstance(value, Thing):
        return ""
    call = value.call
    if loader_of(value) is not None or wrappers(value):
        return "model"
    if call.method == "from_pretrained" and top(call.name) == "transformers":
        return "tokenizer" if re.search("Tokenizer|Processor", class_of(call)) else ""
    if _is_data(value):
        return "data set"
    if makes_arguments(call.name):
        return "training arguments"
    if top(call.name) in ("transformers", "trl") and call.method.startswith("DataCollator"):
        return "collator"
    if top(call.name) == "transformers" and call.method.endswith("Callback"):
        return "callback"
    if top(call.name) == "peft" and call.method.endswith("Config"):
        return "adapter config"
    made = call.receiver is None and top(call.name) in ("torch", "transformers", "bitsandbytes")
    return "optimizer" if made and is_optimizer(call) else ""


def _inherits_callback(bases: list[Value]) -> bool:
    return any(getattr(base, "name", "") == "transformers.TrainerCallback" for base in bases)


def _is_data(value: Value | None) -> bool:
    """Rows of ``datasets``, behind methods of theirs."""
    for _ in range(_CHAIN):
        if not isinstance(value, Thing):
            return False
        if value.call.receiver is None:
            return value.call.name == "datasets.load_dataset"
        value = value.call.receiver
    return False


def _an(kind: str) -> str:
    if kind == "training arguments":
        return kind
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
