"""The calls of a program that a set-up consists of: who loads, who adapts, who trains."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_doctor.static.program.program import Program
from lora_doctor.static.program.values import (
    Argument,
    Call,
    Instance,
    Known,
    Thing,
    Unknown,
    Value,
    same,
)
from lora_doctor.static.program.values import (
    Mapping as Entries,
)

_UNSLOTH = "unsloth"
_TAKEN_OFF = ("merge_and_unload", "unload")
#: Functions that hand back the model that they are given.
_WRAPS = ("get_peft_model", "prepare_model_for_kbit_training", "prepare_model_for_int8_training")
#: modelscope's classes are those of transformers with another hub.
_LOADERS = ("transformers", _UNSLOTH, "liger_kernel", "modelscope")
_TRAINERS = ("transformers", "trl", "sentence_transformers", _UNSLOTH)
_SPLIT = re.compile(r"""\w+(?:\.\w+)*(?:\[["']\w+["']\])+""")


def top(name: str) -> str:
    """The package of a dotted name."""
    return name.partition(".")[0]


def uses_unsloth(program: Program) -> bool:
    """Whether Unsloth changes the classes of the other libraries."""
    return any(top(call.name) == _UNSLOTH for call in program.calls)


def is_loader(call: Call) -> bool:
    """``AutoModelForCausalLM.from_pretrained`` and the like; tokenizers and configs are none."""
    if call.method != "from_pretrained" or top(call.name) not in _LOADERS:
        return False
    owner = class_of(call)
    parts = ("Tokenizer", "Processor", "Config", "Extractor")
    return not any(owner.endswith((part, f"{part}Fast")) for part in parts)


def is_saved_adapter(call: Call) -> bool:
    """``PeftModel.from_pretrained`` and ``AutoPeftModelForX.from_pretrained``."""
    return call.method == "from_pretrained" and top(call.name) == "peft" and (
        "PeftModel" in class_of(call)
    )  # fmt: skip


def is_wrap(call: Call) -> bool:
    """``get_peft_model`` of PEFT or Unsloth."""
    return call.method == "get_peft_model" and top(call.name) in ("peft", _UNSLOTH)


def is_preparation(call: Call) -> bool:
    return call.method in _WRAPS[1:] and top(call.name) == "peft"


def is_adding(call: Call) -> bool:
    """``model.add_adapter`` on a model of transformers or PEFT."""
    return call.method == "add_adapter" and model_of(call.receiver) is not None


def is_trainer(call: Call) -> bool:
    return call.method.endswith("Trainer") and top(call.name) in _TRAINERS


def is_optimizer(call: Call) -> bool:
    """An optimizer of torch, bitsandbytes, transformers, or one that is called like one."""
    name = call.method
    return name.startswith(("Adam", "SGD", "Paged", "Lion", "RMSprop", "Lamb", "Adafactor")) or (
        "Adam" in name and name[:1].isupper()
    )


def class_of(call: Call) -> str:
    """``AutoModel`` of ``transformers.AutoModel.from_pretrained``."""
    return call.name.rpartition(".")[0].rpartition(".")[2]


def loader_of(value: Value | None) -> Call | None:
    """The call that loaded the model which a value is, behind what was put around it."""
    for call in makers(value):
        if is_loader(call) or (is_saved_adapter(call) and "Auto" in class_of(call)):
            return call
    return None


def model_of(value: Value | None) -> Call | None:
    """The call that loaded a model; ``None`` for everything that is no model."""
    return loader_of(value)


def same_source(one: Call, other: Call | None) -> bool:
    """Whether two ``from_pretrained`` are given the same name."""
    if other is None:
        return False
    first, second = (call.value("pretrained_model_name_or_path", 0) for call in (one, other))
    return first is not None and second is not None and same(first, second)


def wrappers(value: Value | None) -> list[Call]:
    """The calls that put adapters on the model that a value is, the newest first; not those whose
    adapters were merged or taken off since."""
    since = itertools.takewhile(lambda call: call.method not in _TAKEN_OFF, makers(value))
    return [call for call in since if is_wrap(call) or is_saved_adapter(call)]


def trainer_with(value: Value | None) -> Call | None:
    """The trainer whose ``model`` a value is (``trainer.model``)."""
    named = isinstance(value, Thing) and value.call.method == "model"
    owner = value.call.receiver if isinstance(value, Thing) and named else None
    return owner.call if isinstance(owner, Thing) and is_trainer(owner.call) else None


def makers(value: Value | None) -> Iterator[Call]:
    """The calls that made a value, from the last to the first."""
    for _ in range(50):
        if not isinstance(value, Thing):
            return
        call = value.call
        yield call
        if call.method in _WRAPS or is_saved_adapter(call):
            value = call.value("model", 0)
        elif call.receiver is not None:
            trainer = trainer_with(value)
            value = trainer.value("model", 0) if trainer is not None else call.receiver
        else:
            return


@dataclass(frozen=True)
class Settings:
    """What an object was made with: a config, the Trainer's arguments."""

    arguments: Mapping[str, Argument]
    #: Attributes that were set afterwards, and fields of an object of the user's.
    attributes: Mapping[str, Value]
    call: Call | None
    open: Unknown | None = None

    def value(self, name: str) -> Value | None:
        if name in self.attributes:
            return self.attributes[name]
        return self.arguments[name].value if name in self.arguments else None

    def names(self) -> list[str]:
        return list(dict.fromkeys((*self.arguments, *self.attributes)))


def settings_of(value: Value | None) -> Settings | None:
    """What an object of a library's, or one of the user's own class, was made with."""
    if isinstance(value, Thing):
        call = value.call
        return Settings(call.keywords, value.attributes, call, call.open)
    if isinstance(value, Instance):
        return Settings({}, value.attributes, None)
    if isinstance(value, Entries):
        return Settings({}, value.entries, None, value.open)
    return None


def is_none(value: Value | None) -> bool:
    """Whether nothing is given, or ``None`` is."""
    return value is None or (isinstance(value, Known) and value.value is None)


def text_of(value: Value | None) -> str | None:
    """The text that a value is; ``None`` for a blank one and for anything else."""
    if isinstance(value, Known) and isinstance(value.value, str) and value.value.strip():
        return value.value
    return None


def is_one_split(one: Unknown, other: Unknown) -> bool:
    """Whether ``splits["train"]`` stands in both places."""
    return one.code == other.code and _SPLIT.fullmatch(one.code) is not None


def is_false(value: Value | None) -> bool:
    """Whether a switch that is off by default is not given, or is surely off."""
    return value is None or (isinstance(value, Known) and not value.value)


@dataclass(frozen=True)
class Roles:
    """Who does what in a program."""

    #: Loads the model that trains.
    loader: Call | None
    #: The model, where it is named in the trainer.
    named: Argument | None
    #: Puts the adapter on it.
    wrapper: Call | None
    #: What the adapter's config is.
    adapter: Value | None
    #: The Trainer.
    trainer: Call | None
    #: The Trainer's arguments.
    training: Value | None


def find_roles(program: Program) -> Roles:
    """The calls of the model that trains: what the last trainer is given, else what is adapted
    last, else what is loaded."""
    trainer = next((call for call in reversed(program.calls) if is_trainer(call)), None)
    model = trainer.argument("model", 0) if trainer is not None else None
    wrapper = _wrapper(program, model, trainer)
    loader = loader_of(model.value) if model is not None else None
    if loader is None and wrapper is not None:
        loader = loader_of(wrapper.result) or loader_of(wrapper.receiver)
    named = model if model is not None and isinstance(model.value, (Known, Unknown)) else None
    if loader is None and (model is None or isinstance(model.value, Unknown)):
        loader = next((call for call in reversed(program.calls) if is_loader(call)), None)
        named = None if loader is not None else named
    return Roles(loader, named, wrapper, _config(wrapper), trainer, _training(program, trainer))


def _wrapper(program: Program, model: Argument | None, trainer: Call | None) -> Call | None:
    """What puts the adapter on: around the trainer's model, by the trainer, on the model itself."""
    around = wrappers(model.value) if model is not None else []
    if around:
        return around[-1]
    if trainer is not None and not is_none(trainer.value("peft_config")):
        return trainer
    kinds = (is_wrap, is_adding, is_saved_adapter)
    found = [call for call in program.calls if any(kind(call) for kind in kinds)]
    loader = loader_of(model.value) if model is not None else None
    if loader is not None:
        found = [
            call for call in found if loader_of(call.receiver or call.value("model", 0)) is loader
        ]
    trained = [call for call in found if not _is_for_inference(call)]
    return next(reversed(trained or found), None)


def _is_for_inference(call: Call) -> bool:
    """A saved adapter that is loaded frozen, as at the end of a script that tries its adapter."""
    return is_saved_adapter(call) and is_false(call.value("is_trainable", 3))


def adds_without_wrapper(roles: Roles) -> Call | None:
    """The call of transformers' own ``model.add_adapter`` by which the model gets its adapter; a
    ``PeftModel`` has a method of the same name."""
    call = roles.wrapper
    if call is None or not is_adding(call) or not call.certain or wrappers(call.receiver):
        return None
    return call


def _config(wrapper: Call | None) -> Value | None:
    if wrapper is None or is_saved_adapter(wrapper):
        return None
    if is_wrap(wrapper):
        if top(wrapper.name) == _UNSLOTH:
            return Thing(wrapper)
        return wrapper.value("peft_config", 1)
    if is_adding(wrapper):
        return next(
            (
                found
                for found in (
                    wrapper.value("adapter_config"), wrapper.value("peft_config"),
                    wrapper.value("", 0), wrapper.value("", 1),
                )
                if isinstance(found, Thing)
            ),
            None,
        )  # fmt: skip
    return wrapper.value("peft_config")


def _training(program: Program, trainer: Call | None) -> Value | None:
    if trainer is not None and not is_none(trainer.value("args", 1)):
        return trainer.value("args", 1)
    made = [
        call.result
        for call in program.calls
        if call.method.endswith("TrainingArguments") and top(call.name) in _TRAINERS
    ]
    return made[-1] if made else None
