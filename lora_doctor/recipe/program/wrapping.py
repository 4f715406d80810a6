"""Orders of a program's calls in which adapters are put on something else than the loaded model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lora_doctor.recipe.program.objects import (
    is_loader,
    is_none,
    is_saved_adapter,
    is_trainer,
    is_wrap,
    loader_of,
    makers,
    top,
)
from lora_doctor.recipe.program.order import Slip, adapted_by, slip
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.program.values import Call, Instance, Thing, Value

_COMPILES = "torch.compile"
#: What puts adapters into a model that is there.
_ADDS = ("load_adapter", "add_adapter", "inject_adapter_in_model", "load_lora_weights")


def loaded_onto_adapters(setup: Setup) -> Iterator[Slip]:
    """``PeftModel.from_pretrained`` on what ``get_peft_model`` returned, which has a name more in
    front of every layer."""
    for call in setup.program.calls:
        if not is_saved_adapter(call) or not call.certain:
            continue
        first = _wrap_of(call.value("model", 0))
        if first is not None and is_wrap(first) and first.certain:
            yield slip(call, first, [])


def _wrap_of(value: Value | None) -> Call | None:
    """The last call that made a model; that of the PEFT model where it is ``base_model`` of one."""
    steps = makers(value)
    last = next(steps, None)
    while last is not None and last.receiver is not None and last.method in ("base_model", "model"):
        before, last = last, next(steps, None)
        if before.method == "model" and last is not None and last.method == "base_model":
            return None  # `model.base_model.model`: the adapted layers under their old names
    return last


def compiled_before_adapters(setup: Setup) -> Iterator[Slip]:
    """``torch.compile`` of a model that gets its adapters afterwards; not ``model.compile()``,
    which compiles in place and leaves the names as they are."""
    for call in setup.program.calls:
        adapts = is_wrap(call) or (is_trainer(call) and not is_none(call.value("peft_config")))
        compiled = _compiled(call.value("model", 0)) if adapts and call.certain else None
        if compiled is not None:
            yield slip(compiled, call, [])


def hotswap_prepared_too_late(setup: Setup) -> Iterator[Slip]:
    """``prepare_model_for_compiled_hotswap`` of a model that is compiled already."""
    for call in _hotswap_preparations(setup):
        if not is_none(call.value("check_compiled")):
            continue
        value = call.value("model", 0)
        before = [one for one in makers(value) if one.name == _COMPILES and one.certain]
        if isinstance(value, Thing) and value.call.name == _COMPILES and value.call.certain:
            before.insert(0, value.call)
        for one in setup.program.calls:
            in_place = one.method == "compile" and one.number < call.number and one.certain
            if in_place and _same_model(one.receiver, value):
                before.append(one)
        if before:
            yield slip(call, before[0], [])


def hotswap_prepared_too_early(setup: Setup) -> Iterator[Slip]:
    """The same of a loaded model that has no adapter yet, and what loaded it."""
    for call in _hotswap_preparations(setup):
        value = call.value("model", 0)
        loader = loader_of(value)
        if loader is None or adapted_by(setup, value, call) is not None:
            continue
        adapts = [one for one in setup.program.calls if _adapts(one) and one.number < call.number]
        if not adapts:
            yield slip(call, loader, [])


def _hotswap_preparations(setup: Setup) -> list[Call]:
    return [
        call
        for call in setup.program.calls
        if call.method == "prepare_model_for_compiled_hotswap" and call.certain
        and top(call.name) == "peft"
    ]  # fmt: skip


def _adapts(call: Call) -> bool:
    return is_wrap(call) or is_saved_adapter(call) or call.method in _ADDS


def _same_model(one: Value | None, other: Value | None) -> bool:
    """Whether both are what the same call made."""
    return isinstance(one, Thing) and isinstance(other, Thing) and one.call is other.call


def _compiled(value: Value | None) -> Call | None:
    """The call that compiled the model which a value is."""
    call = value.call if isinstance(value, Thing) else None
    if call is None or call.name != _COMPILES or not call.certain:
        return None
    return call if loader_of(call.value("model", 0)) is not None else None


def around_the_model(calls: Iterable[Call]) -> str:
    """Where the adapters are put on an object of a class of the program's, which holds the loaded
    model: the class and the place; empty where they are not."""
    for call in calls:
        model = call.value("model", 0) if is_wrap(call) and call.certain else None
        if isinstance(model, Instance) and model.of is not None:
            return f"{model.of.name} ({call.place})"
    return ""


def adapted_part(setup: Setup) -> tuple[Call, str] | None:
    """``get_peft_model(model.part, ...)``: the call, and the path from the model to the part; of a
    program that loads one model and gives adapters to nothing else."""
    wraps = [call for call in setup.program.calls if is_wrap(call)]
    loads = [call for call in setup.program.calls if is_loader(call)]
    if len(wraps) != 1 or len(loads) != 1 or loads[0].statement is None:
        return None
    adapted = wraps[0].argument("model", 0)
    assigned = re.match(r"\s*(\w[\w.]*)\s*=[^=]", loads[0].statement.text)
    if adapted is None or assigned is None or not wraps[0].certain:
        return None
    path = adapted.span.text.strip().removeprefix(f"{assigned[1]}.")
    is_part = path != adapted.span.text.strip() and re.fullmatch(r"\w+(?:\.\w+)*", path)
    return (wraps[0], path) if is_part else None
