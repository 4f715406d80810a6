"""``TrainingArguments`` of transformers and its heirs: outputs apart, no services, a CPU that will
do; and which of them somebody has set, and where."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import zero
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.outputs import Redirected
from lora_doctor.dry_run.acts.plain import plain
from lora_doctor.guest.call_sites import caller
from lora_doctor.text import one_line

#: Fields that hold secrets, or what this file sets itself.
_LEFT_OUT = ("token", "key", "secret", "password")


def prepare(acting: Acting) -> None:
    """Before ``TrainingArguments`` look at the machine."""
    acting.after("transformers.training_args", lambda module: _arguments(acting, module))


def _arguments(acting: Acting, module: ModuleType) -> None:
    places = Redirected(acting)

    def checked(original: Any, arguments: Any) -> None:
        asked = set_by_somebody(arguments)
        if not getattr(arguments, "_lora_doctor_seen", False):
            # `replace()` and heirs come here again with what is set below.
            place = caller()
            acting.journal.tell(
                "arguments",
                type=type(arguments).__name__,
                values=asked,
                command_line=_on_command_line(asked),
                place=None if place is None else vars(place),
            )
            object.__setattr__(arguments, "_lora_doctor_seen", True)
        _apart(acting, arguments, places)
        _for_cpu(acting, arguments)
        original(arguments)
        arguments.report_to = []  # an empty list is read as "all" where it stands in a field

    acting.replaced.around(module.TrainingArguments, "__post_init__", checked)
    zero.bfloat16_on_cpus(acting, module)


def set_by_somebody(arguments: Any) -> dict[str, Any]:
    """Fields whose values are not those of their class, as plain data."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(arguments):
        if not field.init or any(word in field.name for word in _LEFT_OUT):
            continue
        value = getattr(arguments, field.name, None)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING or value != default:
            found[field.name] = plain(value)
    return found


def _on_command_line(asked: dict[str, Any]) -> list[str]:
    words = {word.split("=")[0].lstrip("-").replace("-", "_") for word in sys.argv[1:]}
    return sorted(name for name in asked if name in words)


def _set(arguments: Any, name: str, value: Any) -> None:
    if hasattr(arguments, name):
        setattr(arguments, name, value)


def keep_apart(acting: Acting, arguments: Any) -> None:
    """Once more when training starts: some set ``output_dir`` on arguments that are made."""
    _paths_apart(arguments, Redirected(acting))


def _paths_apart(arguments: Any, places: Redirected) -> None:
    for name in ("output_dir", "logging_dir"):
        if getattr(arguments, name, None) is not None:
            setattr(arguments, name, places.to_write(getattr(arguments, name)))


def _apart(acting: Acting, arguments: Any, places: Redirected) -> None:
    """Nothing is written where the user's results are, and nothing is told to a service."""
    _paths_apart(arguments, places)
    if getattr(arguments, "push_to_hub", False):
        acting.note("redirected", "push_to_hub was left out", once="push_to_hub")
    _set(arguments, "push_to_hub", False)
    _tell_missing_services(acting, getattr(arguments, "report_to", None))
    _set(arguments, "report_to", "none")


def _tell_missing_services(acting: Acting, asked: Any) -> None:
    """A service that is named and whose package is missing: the real run ends when its Trainer is
    made. Asked are the classes that transformers has for it, where there is no such package."""
    from transformers.integrations import integration_utils

    kinds = getattr(integration_utils, "INTEGRATION_TO_CALLBACK", {})
    for name in [asked] if isinstance(asked, str) else list(asked or ()):
        kind = kinds.get(name)
        if kind is None or importlib.util.find_spec(name) is not None:
            continue
        try:
            kind()
        except (RuntimeError, ImportError) as error:
            told = one_line(error, 200)
            acting.journal.tell("lacking", why=f"the Trainer refuses report_to={name} here: {told}")


def _for_cpu(acting: Acting, arguments: Any) -> None:
    """What only a GPU can do, where there is none."""
    import torch

    if torch.cuda.is_available():
        return
    names = () if zero.asked_for(arguments) else ("use_cpu", "no_cuda")  # DeepSpeed has CPUs, too
    for name in names:
        if name in {field.name for field in dataclasses.fields(arguments)}:
            _set(arguments, name, True)
            break
    if getattr(arguments, "fp16", False):
        acting.note("not-proven", "fp16=True needs a GPU; the trainer ran in float32")
        arguments.fp16 = False
    if getattr(arguments, "tf32", None):
        arguments.tf32 = None
    if getattr(arguments, "torch_compile", False):
        acting.note("not-proven", "torch_compile=True was left out")
        arguments.torch_compile = False
