"""The installed classes of what a program's calls return, as far as the sources say."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lora_doctor.recipe.program.objects import (
    class_of,
    is_loader,
    is_none,
    is_preparation,
    is_saved_adapter,
    is_wrap,
    text_of,
    top,
    trainer_with,
)
from lora_doctor.static.installed.class_members import (
    CONTEXT,
    NOTHING,
    Member,
    TypeName,
    member_of,
    returned_by,
)
from lora_doctor.static.installed.signatures import (
    Signature,
    class_statement,
    function_statement,
    of_function,
    signature_of,
    signature_of_function,
)
from lora_doctor.static.program.values import Call, Known, Thing, Value

_DEPTH = 20
PACKAGES = ("transformers", "trl", "peft", "datasets", "accelerate", "torch")
#: Of torch only what a training script makes itself.
_OF_TORCH = ("torch.optim.", "torch.utils.data.", "torch.nn.utils.")
#: Classes whose heirs are what is really there: more methods, and others of the same name.
PEFT_MODEL: TypeName = ("peft", "PeftModel")
MODEL: TypeName = ("transformers", "PreTrainedModel")
TOKENIZER: TypeName = ("transformers", "PreTrainedTokenizerBase")
#: What ``train`` of a Trainer returns.
_TRAINED: TypeName = ("transformers", "TrainOutput")
_OPEN = (PEFT_MODEL, MODEL, TOKENIZER)
#: Where a PEFT model looks for what it does not have.
_BEHIND = {PEFT_MODEL: (("peft", "LoraModel"), MODEL)}
_ROWS, _STREAM = "Dataset", "IterableDataset"


@dataclass(frozen=True)
class ValueType:
    """The class of a value, and the call that returned it."""

    of: TypeName
    made: Call

    @property
    def name(self) -> str:
        return self.of[1]

    @property
    def is_nothing(self) -> bool:
        return self.of == NOTHING

    @property
    def is_context(self) -> bool:
        return self.of == CONTEXT

    @property
    def is_exact(self) -> bool:
        """Whether it is this class and none that inherits it."""
        return self.of not in _OPEN

    def member(self, name: str) -> Member | None:
        """The method or property of this name."""
        for package, owner in (self.of, *_BEHIND.get(self.of, ())):
            found = member_of(package, owner, name)
            if found is not None:
                return found
        return None


def type_of(value: Value | None) -> ValueType | None:
    """The class of a value; ``None`` where it is not known, or is one of the user's own."""
    return _of(value, _DEPTH)


def _of(value: Value | None, depth: int) -> ValueType | None:
    if not isinstance(value, Thing) or not depth:
        return None
    call = value.call
    if call.heir is not None or not call.name:
        return None
    if call.method in ("merge_and_unload", "unload") and call.receiver is not None:
        return _taken_off(call, depth)
    trainer = trainer_with(value)
    if trainer is not None:
        adapted = not is_none(trainer.value("peft_config"))
        return ValueType(PEFT_MODEL, call) if adapted else _of(trainer.value("model", 0), depth - 1)
    found = _of_role(call, depth)
    if found is not None:
        return found
    if call.receiver is not None:
        return _of_method(call, depth)
    return _of_name(call)


def _taken_off(call: Call, depth: int) -> ValueType | None:
    before = _of(call.receiver, depth - 1)
    return ValueType(MODEL, call) if before is not None and before.of == PEFT_MODEL else None


def _of_role(call: Call, depth: int) -> ValueType | None:
    """Of what loads, adapts or prepares a model, or loads a tokenizer or rows."""
    if is_preparation(call):
        return _of(call.value("model", 0), depth - 1)
    if (is_wrap(call) and top(call.name) == "peft") or is_saved_adapter(call):
        return ValueType(PEFT_MODEL, call)
    if call.name == "datasets.load_dataset":
        kind = rows_of(call)
        return ValueType(("datasets", kind), call) if kind else None
    if call.receiver is not None or top(call.name) != "transformers" or has_own_code(call):
        return None
    if is_loader(call):
        return ValueType(MODEL, call)
    owner = class_of(call)
    named = call.method == "from_pretrained" and re.search(r"Tokenizer(?:Fast)?$", owner)
    return ValueType(TOKENIZER, call) if named else None


def has_own_code(loader: Call) -> bool:
    """Whether the class may be one of the model's repository, with methods of its own."""
    trusts = loader.value("trust_remote_code")
    return loader.open is not None or not (
        trusts is None or (isinstance(trusts, Known) and not trusts.value)
    )


def rows_of(call: Call) -> str:
    """The class of what ``load_dataset`` returns; empty where that is not known."""
    streams = call.value("streaming")
    if call.open is not None or not (streams is None or isinstance(streams, Known)):
        return ""
    kind = _STREAM if isinstance(streams, Known) and streams.value else _ROWS
    split = call.value("split", 3)
    if split is None or is_none(split):
        return f"{kind}Dict"
    return kind if text_of(split) is not None else ""


def signature_of_call(call: Call) -> tuple[str, Signature] | None:
    """What a call of an installed class, function or method is of, and its signature; ``None``
    where that is not known, or an heir of the user's is called."""
    package = top(call.name)
    if call.heir is not None or package not in PACKAGES:
        return None
    if call.receiver is not None:
        owner = type_of(call.receiver)
        return _of_member(owner.of, call.method) if owner is not None else None
    if package == "torch" and not call.name.startswith(_OF_TORCH):
        return None
    if call.method[:1].isupper():
        found = signature_of(call.name)
    elif class_of(call)[:1].isupper():
        return _of_member((package, class_of(call)), call.method)
    else:
        found = signature_of_function(call.name)
    return (call.method, found) if found is not None else None


def _of_member(owner: TypeName, name: str) -> tuple[str, Signature] | None:
    package, kind = owner
    if owner in _OPEN and name != "from_pretrained":
        return None  # an heir may take more
    member = member_of(package, kind, name) if package != "builtins" else None
    if member is None or member.is_property:
        return None
    return f"{kind}.{name}", of_function(member.node, bound=member.is_bound)


def _of_method(call: Call, depth: int) -> ValueType | None:
    owner = _of(call.receiver, depth - 1)
    member = owner.member(call.method) if owner is not None else None
    if owner is None or member is None or member.is_property:
        return None
    if call.method == "train" and owner.of[0] == "transformers" and owner.name.endswith("Trainer"):
        return ValueType(_TRAINED, call)  # older releases do not annotate it
    return _typed(returned_by(member.package, member.node), call, owner)


def _of_name(call: Call) -> ValueType | None:
    """Of a class that is called, a method of a class, or a function."""
    package = top(call.name)
    if package not in PACKAGES or (package == "torch" and not call.name.startswith(_OF_TORCH)):
        return None
    if call.method[:1].isupper():
        known = class_statement(package, call.method)
        return ValueType((package, call.method), call) if known is not None else None
    owner = class_of(call)
    if owner[:1].isupper():
        member = member_of(package, owner, call.method)
        if member is None or member.is_property:
            return None
        found = returned_by(member.package, member.node)
        return _typed(found, call, ValueType((package, owner), call))
    function = function_statement(package, call.method)
    return _typed(returned_by(package, function), call, None) if function is not None else None


def _typed(found: TypeName | None, call: Call, owner: ValueType | None) -> ValueType | None:
    if found is None:
        return None
    if found == ("", "Self"):
        return ValueType(owner.of, call) if owner is not None else None
    return ValueType(found, call)
