"""Arguments of a program's calls that the installed libraries do not take, and what they are called
now: asked of the installed signature."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.recipe.edit import Rewrite
from lora_doctor.recipe.program.objects import (
    is_loader,
    is_trainer,
    settings_of,
    text_of,
    top,
    uses_unsloth,
)
from lora_doctor.recipe.program.order import rewrite_of
from lora_doctor.recipe.program.pins import unmet
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.splices import Splice, added, removed, renamed
from lora_doctor.recipe.program.value_types import has_own_code, signature_of_call
from lora_doctor.static.installed.api_tables import releases_of
from lora_doctor.static.installed.loading_arguments import is_taken_by_loading
from lora_doctor.static.installed.signatures import (
    Signature,
    installed_version,
    loads_by_flag,
    signature_of,
)
from lora_doctor.static.place import Place
from lora_doctor.static.program.program import Pin
from lora_doctor.static.program.units import Span, Unit
from lora_doctor.static.program.values import Argument, Call, Known

_PACKAGES = (
    "transformers", "trl", "peft", "sentence_transformers", "datasets", "accelerate", "torch",
)  # fmt: skip
#: How alike an old and a new name are at least: ``evaluation_strategy``, ``eval_strategy``.
_ALIKE = 0.75
_FLAGS = ("load_in_4bit", "load_in_8bit")


@dataclass(frozen=True)
class UnknownArgument:
    """An argument that the installed release does not take."""

    #: The argument.
    name: str
    #: What it is passed to.
    callee: str
    #: The package of that.
    package: str
    #: Its installed release.
    version: str
    #: Where the argument stands.
    place: Place
    #: How it is written now; empty where that is not known.
    now: str
    #: Where it belongs now, where that is another call.
    moved_to: str = ""
    #: The changes of the text; empty where it has to be done by hand.
    rewrites: tuple[Rewrite, ...] = ()
    #: Where another release is asked for than the installed one, which ``version`` is then.
    pinned_at: Place | None = None
    #: The releases whose source was read for that.
    read: tuple[str, ...] = ()


def unknown_arguments(setup: Setup) -> Iterator[UnknownArgument]:
    """The arguments, in the order of the calls. Where the program pins another release than the
    installed one, that of the pin counts; what another library patches is passed over."""
    pinned = {pin.package.replace("-", "_"): pin for pin, _ in reversed(list(unmet(setup.program)))}
    patched = uses_unsloth(setup.program)
    seen = set()
    for call in setup.program.calls:
        package = top(call.name)
        if package not in _PACKAGES or (patched and package != "peft"):
            continue
        if package in pinned:
            if call.span not in seen:
                seen.add(call.span)
                yield from _in_pinned(setup, call, pinned[package])
            continue
        version = installed_version(package.replace("_", "-"))
        if version is None or call.span in seen:
            continue
        seen.add(call.span)
        if is_loader(call):
            yield from _by_flag(setup, call, version)
            yield from _by_config(call, version)
        else:
            yield from _in(setup, call, version)


def _in(setup: Setup, call: Call, version: str) -> Iterator[UnknownArgument]:
    callee, signature = call.method, signature_of(call.name) if call.heir is not None else None
    if call.heir is None:
        callee, signature = signature_of_call(call) or (callee, None)
    if signature is None or signature.open or not signature.names:
        return
    for name, argument in _not_own(call).items():
        if name in signature.names:
            continue
        now = _now(name, signature, call)
        change: list[Splice] = []
        moved = ""
        if now:
            change = _renamed(setup, argument, now)
        elif not now and is_trainer(call):
            moved, now, change = _moved(call, argument)
        yield UnknownArgument(
            name, callee, top(call.name), version, argument.whole.place, now, moved,
            _rewrites(change),
        )  # fmt: skip


def _not_own(call: Call) -> dict[str, Argument]:
    """The named arguments of a call that are the library's to take, and not those of an heir of the
    user's; none where that has a constructor of its own."""
    if call.heir is None:
        return dict(call.keywords)
    from lora_doctor.static.program.objects import own_arguments  # libcst: where there is a script

    own = own_arguments(call.heir)
    if own is None:
        return {}
    return {name: one for name, one in call.keywords.items() if name not in own}


def _in_pinned(setup: Setup, call: Call, pin: Pin) -> Iterator[UnknownArgument]:
    """The arguments that the pinned release does not take: told by its source, which was read when
    this package was made. Nothing is said of one that no release or every release takes."""
    releases = releases_of(pin.package)
    if releases is None or not call.method[:1].isupper():
        return
    for name, argument in _not_own(call).items():
        if releases.takes(call.method, name, pin.specifier) is not False:
            continue
        taken = [
            one for one in releases.changing(call.method, pin.specifier) if one not in call.keywords
        ]
        near = difflib.get_close_matches(name, taken, n=1, cutoff=_ALIKE)
        change = _renamed(setup, argument, near[0]) if near else []
        yield UnknownArgument(
            name, call.method, top(call.name), pin.specifier, argument.whole.place,
            near[0] if near else "", "", _rewrites(change), pin.place,
            tuple(releases.around(pin.specifier)),
        )  # fmt: skip


def _renamed(setup: Setup, argument: Argument, now: str) -> list[Splice]:
    """The argument under another name; that of an entry of a dictionary that is unpacked there,
    where nothing else in the program reads the entry."""
    if not argument.unpacked:
        return [renamed(argument, now)]
    written = argument.whole.text
    quote = written[:1] if written[:1] in ("'", '"') else ""
    read = sum(len(re.findall(rf"\b{argument.name}\b", u.text)) for u in setup.program.units)
    if not re.match(rf"{quote}{argument.name}{quote}\s*[:=]", written) or read != 1:
        return []
    start = argument.whole.start + len(quote)
    return [(Span(argument.whole.unit, start, start + len(argument.name)), now)]


def _now(name: str, signature: Signature, call: Call) -> str:
    """The name that the installed signature has for it: one that is nearly the same, else the only
    one whose type is named after it."""
    free = [one for one in signature.names if one not in call.keywords]
    near = difflib.get_close_matches(name, free, n=2, cutoff=_ALIKE)
    if near and (len(near) == 1 or _ratio(name, near[0]) > _ratio(name, near[1])):
        return near[0]
    word = name.replace("_", "").lower()
    typed = [
        one
        for one in free
        if len(word) > 4 and re.search(rf"\w*{word}\w*", signature.annotations.get(one, "").lower())
    ]
    return typed[0] if len(typed) == 1 else ""


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _moved(call: Call, argument: Argument) -> tuple[str, str, list[Splice]]:
    """The Trainer's arguments, where they take it now: their class, the name there, the change."""
    arguments = settings_of(call.value("args", 1))
    target = arguments.call if arguments is not None else None
    if target is None or target.node is None:
        return "", "", []
    signature = signature_of(target.name)
    if signature is None:
        return "", "", []
    named = argument.name in signature.names
    now = argument.name if named else _now(argument.name, signature, target)
    if not now or argument.unpacked or now in target.keywords:
        return target.method if now else "", now, []
    # The value is written where it is evaluated earlier: a plain one, or a name that is set before.
    early = target.number < call.number and not isinstance(argument.value, Known)
    out, into = removed(call, argument), added(target, now, argument.span.text)
    inside = call.span.start <= target.span.start and target.span.end <= call.span.end
    if out is None or into is None or (early and not inside and not argument.value.via):
        return target.method, now, []
    return target.method, now, [out, into]


def _by_flag(setup: Setup, call: Call, version: str) -> Iterator[UnknownArgument]:
    """``load_in_4bit=True`` given to ``from_pretrained`` itself."""
    for flag in _FLAGS:
        argument = call.argument(flag)
        if argument is None or top(call.name) != "transformers" or loads_by_flag(flag) is not False:
            continue
        change: list[Splice] = []
        on = isinstance(argument.value, Known) and argument.value.value is True
        now = f"quantization_config=BitsAndBytesConfig({flag}=True)"
        if on and not argument.unpacked and call.argument("quantization_config") is None:
            unit = argument.whole.unit
            from lora_doctor.recipe.program.imports import name_of  # brings libcst

            name, change = name_of(setup.program, unit, "transformers", "BitsAndBytesConfig")
            written = argument.whole.text
            equal = written[len(flag) : len(written) - len(argument.span.text)]
            new = f"quantization_config{equal}{name}({flag}={argument.span.text})"
            change = [(argument.whole, new), *change]
        yield UnknownArgument(
            flag, call.method, "transformers", version, argument.whole.place, now, "",
            _rewrites(change),
        )  # fmt: skip


def _by_config(call: Call, version: str) -> Iterator[UnknownArgument]:
    """What ``from_pretrained`` hands on to the config, which does not have it, and then to the
    constructor of the model, which does not take it."""
    if top(call.name) != "transformers" or has_own_code(call) or call.heir is not None:
        return
    folder = text_of(call.value("pretrained_model_name_or_path", 0))
    for name, argument in call.keywords.items():
        if name in _FLAGS or is_taken_by_loading(name) is not False:
            continue
        if folder and name in _config_of(call.span.unit, folder):
            continue
        yield UnknownArgument(
            name, call.method, "transformers", version, argument.whole.place, "", ""
        )


def _config_of(unit: Unit, folder: str) -> dict[str, Any]:
    """The config in a folder, looked for from here and from the program; empty without one."""
    for base in (Path(), Path(unit.file).parent):
        try:
            found = json.loads((base / folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _rewrites(changes: list[Splice]) -> tuple[Rewrite, ...]:
    if not all(span.unit.editable for span, _ in changes):
        return ()
    return tuple(rewrite_of(change) for change in changes)
