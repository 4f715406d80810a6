"""Calls around the training of a program that leave adapters untrained, or unsaved."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from lora_doctor.recipe.program.objects import (
    is_loader,
    is_none,
    is_optimizer,
    is_saved_adapter,
    is_trainer,
    is_wrap,
    makers,
    text_of,
    top,
    trainer_with,
)
from lora_doctor.recipe.program.order import Slip, adapted_by, slip
from lora_doctor.recipe.program.own_optimizer import brings_optimizer
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.splices import Splice
from lora_doctor.static.program.units import Span
from lora_doctor.static.program.values import Call, Known, Thing, Value

_MERGES = ("merge_and_unload", "unload")
#: The files of an adapter by name, or calls that take files away.
_OWN_FILES = re.compile(
    r"adapter_config|\b(?:rmtree|unlink)\(|\bos\.(?:remove|rename|replace)\(|\bshutil\.move\("
)
_SAVES = ("save_pretrained", "push_to_hub")
#: Every place that sets it.
_SETTING = re.compile(r"\.requires_grad(?:_\(|\s*=(?!=))")
#: ``for parameter in``, ``for name, parameter in``, at the end of a text.
_LOOP = re.compile(r"\bfor\s+\(?\s*(?:\w+\s*,\s*)?(\w+)\s*\)?\s+in\s+$")
#: ``: parameter.requires_grad = True``, at the beginning of one.
_SET = re.compile(r"\s*:\s*(\w+)\.requires_grad(?:\s*=\s*(True|False)\b|_\(\s*(True|False)?\s*\))")


def merged_and_dropped(setup: Setup) -> Iterator[Slip]:
    """``model.merge_and_unload()`` on a PEFT model that is saved later, itself or by its trainer.

    The PEFT model has no adapters then, and what it saves is an empty adapter."""
    for call in setup.program.calls:
        if call.method not in _MERGES or not call.certain:
            continue
        model = _peft_model(call)
        saving = next(
            (one for one in setup.program.calls
             if one.number > call.number and model is not None and _saves(one, model)),
            None,
        )  # fmt: skip
        if saving is not None:
            yield slip(call, saving, _kept(call, saving))


def merged_into_adapter_folder(setup: Setup) -> Iterator[Slip]:
    """``save_pretrained`` of a merged model into the folder from which its adapter was loaded; not
    where the program handles the adapter's own files, or takes files away."""
    if any(_OWN_FILES.search(unit.python) for unit in setup.program.units):
        return
    for call in setup.program.calls:
        before = list(makers(call.receiver))
        folder = text_of(call.value("save_directory", 0))
        if call.method != "save_pretrained" or not call.certain or folder is None:
            continue
        adapter = next((one for one in before if is_saved_adapter(one)), None)
        merged = any(one.method in _MERGES for one in before)
        if adapter is None or not merged or not is_none(adapter.value("subfolder")):
            continue
        name = text_of(adapter.value("model_id", 1)) or text_of(
            adapter.value("pretrained_model_name_or_path", 0)
        )
        if name is not None and Path(name) == Path(folder):
            yield slip(call, adapter, [])


def merged_where_it_trained(setup: Setup) -> Iterator[Call]:
    """``merge_and_unload`` of the PEFT model that a Trainer has trained before, in the same
    process; not where the program gathers weights."""
    if any("GatheredParameters" in unit.python for unit in setup.program.units):
        return
    for call in setup.program.calls:
        wrap = _peft_model(call) if call.method == "merge_and_unload" and call.certain else None
        before = (one for one in setup.program.calls if one.number < call.number)
        if wrap is not None and any(
            _trains(setup, one, wrap) or _is_method(one, wrap, "train")
            for one in before
            if one.method == "train"
        ):
            yield call


def saved_as_base(setup: Setup) -> Iterator[Slip]:
    """``save_pretrained`` of the loaded model, which holds the adapters of a PEFT model that is not
    saved itself."""
    calls = setup.program.calls
    for call in calls:
        first = next(makers(call.receiver), None)
        if call.method != "save_pretrained" or not call.certain or first is None:
            continue
        wrap = adapted_by(setup, call.receiver, call) if is_loader(first) else None
        if wrap is None or not is_wrap(wrap):
            continue
        if not any(one.number > wrap.number and _saves(one, wrap) for one in calls):
            yield slip(call, wrap, [])


def trained_in_turn(setup: Setup) -> Iterator[Slip]:
    """A second adapter that is made the active one between two ``train()`` of one Trainer.

    The Trainer made its optimizer for the first ``train()``, of what was trainable then."""
    if brings_optimizer(setup):
        return  # which may hold both, or be a new one
    for trainer in setup.program.calls:
        if not is_trainer(trainer) or top(trainer.name) not in ("transformers", "trl"):
            continue
        runs = [call for call in setup.program.calls if _is_method(call, trainer, "train")]
        for first, second in itertools.pairwise(runs):
            before = _active(setup, trainer, -1, first.number)
            now = _active(setup, trainer, first.number, second.number)
            if not (first.certain and second.certain) or now is None or before is None:
                continue
            if _name(now) and _name(before) and _name(now) != _name(before):
                yield slip(second, now, [])


def all_set_trainable(setup: Setup) -> Iterator[tuple[bool, Slip]]:
    """All parameters of a model that has adapters made trainable (``True``) or frozen, before it is
    trained; not where the program sets ``requires_grad`` anywhere else, which may undo it."""
    calls = setup.program.calls
    switched = {call.span for call in calls if _switched(call) is not None}
    if sum(len(_SETTING.findall(unit.python)) for unit in setup.program.units) != len(switched):
        return
    for call in calls:
        switch, wrap = _switched(call), _wrapper(call.receiver)
        if switch is None or wrap is None or not call.certain:
            continue
        later = [one for one in calls if one.number > call.number]
        if not any(map(_adapts, later)) and any(_trains(setup, one, wrap) for one in later):
            yield switch, slip(call, wrap, [])


def _trains(setup: Setup, call: Call, wrap: Call) -> bool:
    """Whether a call is part of the training of the PEFT model that ``wrap`` made: a model that is
    only asked, such as the teacher of a distillation, may well be frozen."""
    trainer = call
    if call.method == "train" and isinstance(call.receiver, Thing):
        trainer = call.receiver.call
    if is_trainer(trainer):
        return _wrapper(trainer.value("model", 0)) is wrap
    return wrap is setup.roles.wrapper and (
        call.method in ("backward", "step") or is_optimizer(call)
    )


def _adapts(call: Call) -> bool:
    """Whether a call decides anew what is trainable."""
    return call.method in ("set_adapter", *_MERGES) or is_wrap(call) or is_saved_adapter(call)


def _switched(call: Call) -> bool | None:
    """What a call that stands in a loop over all parameters sets ``requires_grad`` to."""
    if call.method == "requires_grad_" and not call.keywords and _is_model(call.receiver):
        value = call.value("requires_grad", 0)
        if value is None:
            return True
        return value.value if isinstance(value, Known) and isinstance(value.value, bool) else None
    if call.method not in ("parameters", "named_parameters"):
        return None
    text = call.span.unit.python
    head = _LOOP.search(text[max(0, call.span.start - 200) : call.span.start])
    body = _SET.match(text, call.span.end)
    if head is None or body is None or head[1] != body[1]:
        return None
    return "False" not in (body[2], body[3])


def _is_model(value: Value | None) -> bool:
    call = next(makers(value), None)
    return call is not None and (is_loader(call) or is_wrap(call) or is_saved_adapter(call))


def _wrapper(value: Value | None) -> Call | None:
    """The call that put adapters on a model and returned the PEFT model that a value is."""
    call = next(makers(value), None)
    return call if call is not None and (is_wrap(call) or is_saved_adapter(call)) else None


def _peft_model(call: Call) -> Call | None:
    """What made the PEFT model whose method is called: a wrapper, or a Trainer as ``x.model``."""
    wrap = _wrapper(call.receiver)
    trainer = trainer_with(call.receiver)
    if wrap is not None or trainer is None:
        return wrap
    by_itself = not is_none(trainer.value("peft_config"))
    return trainer if by_itself else _wrapper(trainer.value("model", 0))


def _saves(call: Call, model: Call) -> bool:
    """Whether a call saves the PEFT model that ``model`` made."""
    if call.method in _SAVES:
        return _peft_model(call) is model
    if call.method == "save_model" and isinstance(call.receiver, Thing):
        trainer = call.receiver.call
        return trainer is model or (
            is_trainer(trainer) and _wrapper(trainer.value("model", 0)) is model
        )
    return False


def _kept(call: Call, saving: Call) -> list[Splice]:
    """``model = `` before ``model.merge_and_unload()``, where ``model`` is what is saved."""
    alone = call.statement is not None and call.statement.text.strip() == call.span.text.strip()
    name = _name_before(call)
    if not alone or not name or saving.method not in _SAVES or _name_before(saving) != name:
        return []
    start = call.span.start
    return [(Span(call.span.unit, start, start), f"{name} = ")]


def _name_before(call: Call) -> str:
    """``model`` of ``model.save_pretrained(...)``; empty where the method is not that of a name."""
    found = re.match(rf"\s*(\w+)\.{call.method}\(", call.span.text)
    return found[1] if found is not None and found[1].isidentifier() else ""


def _is_method(call: Call, owner: Call, name: str) -> bool:
    return call.method == name and isinstance(call.receiver, Thing) and call.receiver.call is owner


def _active(setup: Setup, trainer: Call, after: int, before: int) -> Call | None:
    """The last ``set_adapter`` on the trainer's model between two calls."""
    wrap = _wrapper(trainer.value("model", 0))
    chosen = None
    for call in setup.program.calls:
        if call.method == "set_adapter" and call.certain and after < call.number < before:
            of_model = wrap is not None and _wrapper(call.receiver) is wrap
            if of_model or trainer_with(call.receiver) is trainer:
                chosen = call
    return chosen


def _name(call: Call) -> str:
    """The adapter that ``set_adapter`` makes active; empty where it is not one that is known."""
    return text_of(call.value("adapter_name", 0)) or ""
