"""Calls whose result the text of a program says: builtins, texts, paths, parsers of arguments."""

from __future__ import annotations

import os.path
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import libcst as cst

from lora_doctor.static.program.command_line import PARSERS, parsed, parser_call
from lora_doctor.static.program.config_files import of_config_file
from lora_doctor.static.program.containers import made_container, of_container
from lora_doctor.static.program.expressions import environment
from lora_doctor.static.program.known_names import of_installed
from lora_doctor.static.program.parsed_words import as_keywords, given_fields
from lora_doctor.static.program.values import (
    LONGEST,
    Call,
    Class,
    Function,
    Instance,
    Items,
    Known,
    Mapping,
    NotPlainError,
    Reference,
    Thing,
    Unknown,
    Value,
    constant,
    plain,
)

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context

#: Methods of a model that return it.
_SELF = frozenset(
    ["to", "cuda", "cpu", "half", "float", "bfloat16", "double", "train", "eval", "requires_grad_"]
)
#: Methods of a path that return the same one, spelled otherwise.
_OF_PATHS = ("resolve", "absolute", "expanduser", "as_posix")
_TEXT = frozenset(
    [
        "lower",
        "upper",
        "strip",
        "lstrip",
        "rstrip",
        "split",
        "rsplit",
        "replace",
        "removeprefix",
        "removesuffix",
        "startswith",
        "endswith",
        "format",
        "join",
    ]
)
#: What a program asks of the GPU, answered as on one with bfloat16.
_GPU: dict[str, Any] = {
    "torch.cuda.is_available": True, "torch.cuda.is_bf16_supported": True,
    "unsloth.is_bfloat16_supported": True, "unsloth.is_bf16_supported": True,
    "transformers.utils.is_torch_bf16_gpu_available": True,
    "torch.cuda.get_device_capability": (8, 0), "torch.backends.mps.is_available": False,
    "torch.cuda.device_count": 1,
}  # fmt: skip
_PURE: dict[str, Callable[..., Any]] = {
    "builtins.str": str, "builtins.int": int, "builtins.float": float, "builtins.bool": bool,
    "builtins.len": len, "builtins.max": max, "builtins.min": min, "os.path.join": os.path.join,
    "os.path.expanduser": os.path.expanduser, "pathlib.Path": os.path.join,
    "os.path.basename": os.path.basename, "os.path.dirname": os.path.dirname,
    "os.path.abspath": os.path.abspath, "os.path.realpath": os.path.abspath,
    "os.path.normpath": os.path.normpath, "os.fspath": str,
    "torch.device": str,
}  # fmt: skip


def known_call(follower: Context, call: Call, node: cst.Call) -> Value | None:
    """What the call returns; ``None`` where it is not one of these."""
    for look in _LOOKS:
        found = look(follower, call)
        if found is not None:
            return found
    return _started(follower, call)


def _gpu(follower: Context, call: Call) -> Value | None:
    if call.name not in _GPU:
        return None
    text = " ".join(call.span.text.split())
    follower.assumed.append(Unknown(text, call.place, "", call.span))
    found = _GPU[call.name]
    if isinstance(found, tuple):
        return Items([Known(item) for item in found], "tuple")
    return Known(found)


def _of_parsers(follower: Context, call: Call) -> Value | None:
    if call.name in PARSERS:
        return parser_call(follower, call)
    if isinstance(call.receiver, Thing) and call.receiver.made_by in PARSERS:
        return parsed(follower, call.receiver, call)
    return None


def _of_model(follower: Context, call: Call) -> Value | None:
    receiver = call.receiver
    if call.method == "unwrap_model":  # accelerate's, or a function of its
        return call.value("model", 0)
    if not isinstance(receiver, Thing):
        return None
    if call.method in _SELF and not receiver.made_by.endswith("Trainer"):
        return receiver  # what a trainer's `train` returns is another thing
    if call.method == "prepare" and call.positional:  # accelerate's
        given = [item.value for item in call.positional]
        return given[0] if len(given) == 1 else Items(given, "tuple")
    return None


def _of_text(follower: Context, call: Call) -> Value | None:
    receiver = call.receiver
    if not isinstance(receiver, Known) or not isinstance(receiver.value, str):
        return None
    if call.method in _OF_PATHS:
        return receiver
    if call.method not in _TEXT or call.keywords:
        return None
    try:
        given = [constant(item.value) for item in call.positional]
        if len(receiver.value) * max(map(_size, given), default=0) > LONGEST:
            return None
        found = getattr(receiver.value, call.method)(*given)
    except (NotPlainError, TypeError, ValueError, KeyError, IndexError, AttributeError):
        return None
    made = _value_of(found)
    if isinstance(made, Items) and call.method == "split" and len(given) < 2:
        made.joined = (receiver, given[0] if given else " ")
    return made


def _builtin(follower: Context, call: Call) -> Value | None:
    name, first = call.name, call.value("", 0)
    if name == "builtins.vars":
        if isinstance(first, Mapping):
            return first
        return Mapping(first.attributes) if isinstance(first, Instance) else None
    if name in ("dataclasses.asdict", "attr.asdict", "attrs.asdict"):
        return _copied(first) if isinstance(first, Instance) else None
    if name == "builtins.setattr":
        return _set_attribute(follower, call, first)
    if name == "builtins.getattr" and first is not None:
        attribute = call.value("", 1)
        if isinstance(attribute, Known) and isinstance(attribute.value, str):
            default = call.value("", 2)
            found = follower.attribute(first, attribute.value)
            if isinstance(first, Reference):
                return Reference(f"{first.name}.{attribute.value}")
            return found or (default if isinstance(first, Instance) else None)
    if name in _PURE and not call.keywords:
        try:
            # A dtype as a text is its name; of other names of a library only they know the value.
            read = plain if name == "builtins.str" else constant
            return _value_of(_PURE[name](*(read(item.value) for item in call.positional)))
        except (NotPlainError, TypeError, ValueError, OverflowError):
            return first if isinstance(first, Unknown) else None
    return None


def _copied(value: Value) -> Value:
    """A field of a dataclass as ``asdict`` copies it: objects in it become dictionaries, too."""
    if isinstance(value, Instance):
        return Mapping({name: _copied(one) for name, one in value.attributes.items()})
    if isinstance(value, Items):
        return Items([_copied(one) for one in value.items], value.kind, value.span, value.via,
                     list(value.gaps), value.joined)  # fmt: skip
    if isinstance(value, Mapping):
        entries = {name: _copied(one) for name, one in value.entries.items()}
        return Mapping(entries, value.span, value.via, list(value.gaps), dict(value.spans))
    return value


def _set_attribute(follower: Context, call: Call, owner: Value | None) -> Value | None:
    """``setattr``; with a name that is not known, any attribute may be another one now."""
    name, value = call.value("", 1), call.value("", 2)
    if not isinstance(owner, (Instance, Thing)) or value is None or call.node is None:
        return None
    gap = follower.unknown(call.node)
    if isinstance(name, Known):
        sure = not follower.unsure and not follower.repeated
        owner.attributes[str(name.value)] = value if sure else gap
    else:
        owner.attributes.update(dict.fromkeys(owner.attributes, gap))
    return Known(None)


def _environment(follower: Context, call: Call) -> Value | None:
    if call.name not in ("os.getenv", "os.environ.get"):
        return None
    key = call.value("key", 0)
    found = environment(follower, key, call.value("default", 1))
    if found is None and isinstance(key, Known):
        advice = f"set the variable {key.value}"
        return Unknown(" ".join(call.span.text.split()), call.place, advice, call.span)
    return found


#: What each looks for is the matter of no other.
_LOOKS = (_gpu, _of_parsers, _of_model, _of_text, of_container, made_container, of_config_file,
          _builtin, _environment, of_installed)  # fmt: skip


def _started(follower: Context, call: Call) -> Value | None:
    """``typer.run(main)``, ``fire.Fire(main)`` and the like start what they are given."""
    if call.name not in ("typer.run", "fire.Fire", "tyro.cli", "defopt.run", "jsonargparse.CLI"):
        return None
    first = call.value("f", 0)
    given = as_keywords(given_fields(follower.script_arguments), call.span)
    if isinstance(first, Function):
        return follower.run(first, (), given)
    if isinstance(first, Class):
        from lora_doctor.static.program.objects import call_object

        return call_object(follower, first, (), given)
    return None


def _size(value: Any) -> int:
    """Characters of a text, or of all in a list of them."""
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else len(str(value))


def _value_of(found: Any) -> Value:
    if isinstance(found, (list, tuple)):
        return Items([Known(item) for item in found], type(found).__name__)
    return Known(found)
