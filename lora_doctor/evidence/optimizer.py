"""What the user's optimizer holds: which trainable weights it will ever move.

Read off the user's own objects, which stay bit for bit as they are: a scheduler is run on a copy
over stand-ins. Torch is imported inside functions.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.text import clean_path, one_line

WHAT_IT_IS = (
    "is a torch optimizer, a list of parameter groups, or several of these: a list, or a mapping "
    "of phase to one"
)


@dataclass(frozen=True)
class Phase:
    """What trains for a part of the run. ``groups``: ``(tensors, learning rate)``."""

    name: str
    groups: tuple[tuple[tuple[Any, ...], float], ...]


@dataclass(frozen=True)
class TrainableTensor:
    """A tensor of the model that requires a gradient."""

    #: Its path in the model.
    name: str
    #: Whether it belongs to an adapter.
    adapter: bool
    #: What the optimizer does to it.
    fate: Literal["updated", "in no group", "learning rate 0"]
    #: How often one phase holds it: the largest number of any phase.
    times: int = 0


@dataclass(frozen=True)
class OptimizerState:
    """What all phases together do to a model."""

    #: Each phase with its groups as ``(number of tensors, learning rate)``.
    phases: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]
    #: The tensors of the model that require a gradient.
    tensors: tuple[TrainableTensor, ...]
    #: Tensors of the model that are held and do not require a gradient.
    frozen: tuple[str, ...]
    #: How many held tensors are not in the model.
    foreign: int
    #: The weights of the model whose memory such a tensor uses: no gradient arrives at it.
    foreign_shared: tuple[str, ...]
    #: How many tensors the phases hold, each counted once.
    held: int
    #: Whether the model has any adapters yet.
    adapters: bool
    #: What could not be told.
    notes: tuple[str, ...] = ()

    def lost(self, *, adapter: bool) -> tuple[TrainableTensor, ...]:
        """Trainable tensors that no phase moves."""
        return tuple(
            item for item in self.tensors if item.fate != "updated" and item.adapter == adapter
        )


def check_arguments(optimizer: Any, scheduler: Any, planned_steps: Any) -> None:
    """Raises InputError for what :func:`read_optimizer` cannot take."""
    if optimizer is None:
        if scheduler is not None or planned_steps is not None:
            raise InputError("scheduler and planned_steps go with an optimizer; give optimizer too")
        return
    _phases(optimizer)
    if planned_steps is not None and (
        isinstance(planned_steps, bool) or not isinstance(planned_steps, int) or planned_steps < 1
    ):
        raise InputError(
            f"planned_steps is the number of optimizer steps of the run, not {planned_steps!r:.60}"
        )
    if scheduler is None:
        return
    if not hasattr(optimizer, "param_groups"):
        raise InputError("scheduler goes with one optimizer; give the groups of each phase instead")
    if not callable(getattr(scheduler, "step", None)):
        raise InputError(
            f"scheduler is a learning rate scheduler of torch, not {type(scheduler).__name__}"
        )
    if planned_steps is None:
        raise InputError("scheduler needs planned_steps, the number of optimizer steps of the run")


def read_optimizer(
    model: Any, optimizer: Any, scheduler: Any = None, planned_steps: int | None = None
) -> OptimizerState:
    """Which of the model's trainable tensors the optimizer moves, in any of its phases.

    Args:
        model: the loaded module, adapters on it or not.
        optimizer: see :data:`WHAT_IT_IS`.
        scheduler: of this optimizer, run on a copy for ``planned_steps`` steps: a learning rate
            counts when it is above 0 in one of them.

    Raises:
        InputError: an argument is not what it should be.
        EvidenceError: the optimizer keeps copies of the weights, so that nothing can be told.
    """
    check_arguments(optimizer, scheduler, planned_steps)
    phases = _phases(optimizer)
    if type(optimizer).__module__.startswith("deepspeed"):
        raise EvidenceError("DeepSpeed's optimizer holds copies of the weights, not the model's")
    notes: list[str] = []
    if scheduler is not None and planned_steps is not None:
        rates = _simulated(scheduler, optimizer, planned_steps, notes)
        phases = [Phase(phase.name, _with_rates(phase, rates)) for phase in phases]
    return _compare(model, phases, notes)


def _phases(optimizer: Any) -> list[Phase]:
    """Raises InputError for what is none."""
    if isinstance(optimizer, Mapping) and "params" not in optimizer:
        return [_phase(str(name), item) for name, item in optimizer.items()]
    if isinstance(optimizer, Sequence) and not isinstance(optimizer, str):
        if not optimizer:
            raise InputError("optimizer is an empty list; give an optimizer or its groups")
        if not all(isinstance(item, Mapping) and "params" in item for item in optimizer):
            return [_phase(f"phase {n}", item) for n, item in enumerate(optimizer, 1)]
    return [_phase("", optimizer)]


def _phase(name: str, item: Any) -> Phase:
    groups = getattr(item, "param_groups", item)
    groups = [groups] if isinstance(groups, Mapping) else groups
    good = isinstance(groups, Sequence) and not isinstance(groups, str)
    if not good or not all(isinstance(group, Mapping) and "params" in group for group in groups):
        where = f"optimizer, {name}:" if name else "optimizer"
        raise InputError(f"{where} {WHAT_IT_IS}; not {type(item).__name__}")
    defaults = getattr(item, "defaults", {})
    return Phase(name, tuple((_tensors(group), _rate(group, defaults)) for group in groups))


def _tensors(group: Mapping[str, Any]) -> tuple[Any, ...]:
    held = group["params"]
    if hasattr(held, "requires_grad"):
        return (held,)
    if not isinstance(held, (Sequence, set, frozenset)):
        # A generator would be used up by looking.
        raise InputError(
            f"optimizer: params of a group is {type(held).__name__}; give a list of tensors"
        )
    # torch also takes (name, tensor)
    return tuple(item[1] if isinstance(item, tuple) else item for item in held)


def _rate(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> float:
    rate = group.get("lr", defaults.get("lr"))
    if rate is None:
        raise InputError("optimizer: a group has no lr; write one into each group")
    return float(rate)


def _with_rates(phase: Phase, rates: Sequence[float]) -> tuple[tuple[tuple[Any, ...], float], ...]:
    return tuple(
        (tensors, highest) for (tensors, _), highest in zip(phase.groups, rates, strict=True)
    )


def _simulated(scheduler: Any, optimizer: Any, steps: int, notes: list[str]) -> list[float]:
    """The highest learning rate of each group in the first steps until all were above 0.

    The copy shares nothing that it changes: weights are replaced by empty ones, and the state of
    the optimizer (moments as large as the weights) is left out.
    """
    import torch

    scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate's wrapper
    inner = getattr(scheduler, "optimizer", optimizer)
    memo: dict[int, Any] = {}
    for group in (*optimizer.param_groups, *inner.param_groups):
        for tensor in group["params"]:
            memo[id(tensor)] = torch.nn.Parameter(torch.empty(0))
    state = getattr(inner, "state", None)
    if state is not None:
        memo[id(state)] = defaultdict(dict)
    highest = [float(group["lr"]) for group in inner.param_groups]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = copy.deepcopy(scheduler, memo)
            for _ in range(steps - 1):
                if all(highest):
                    break
                twin.step()
                now = [float(group["lr"]) for group in twin.optimizer.param_groups]
                highest = [max(pair) for pair in zip(highest, now, strict=True)]
    except Exception as error:  # a scheduler of the user's may do anything
        if not all(highest):
            raise EvidenceError(
                f"{type(scheduler).__name__} cannot be run on a copy for {steps} steps: "
                f"{type(error).__name__}: {one_line(error, 160)}; give the groups of each phase"
            ) from error
        notes.append(f"{type(scheduler).__name__} was not run to its end")
    return highest


def _compare(model: Any, phases: Sequence[Phase], notes: list[str]) -> OptimizerState:
    from lora_doctor.contract.adapters import every_parameter, find_adapters

    named = dict(model.named_parameters())
    own = {id(tensor): name for name, tensor in named.items()}
    adapters = {id(item.tensor) for item in every_parameter(find_adapters(model))}
    rates: dict[int, float] = {}
    times: dict[int, int] = {}
    held: dict[int, Any] = {}
    for phase in phases:
        counts: Counter[int] = Counter()
        for tensors, rate in phase.groups:
            for tensor in tensors:
                held[id(tensor)] = tensor
                counts[id(tensor)] += 1
                rates[id(tensor)] = max(rate, rates.get(id(tensor), 0.0))
        for key, count in counts.items():
            times[key] = max(count, times.get(key, 0))
    trainable = []
    for name, tensor in named.items():
        if not tensor.requires_grad:
            continue
        fate: Literal["updated", "in no group", "learning rate 0"] = "in no group"
        if id(tensor) in held:
            fate = "updated" if rates[id(tensor)] > 0 else "learning rate 0"
        trainable.append(
            TrainableTensor(
                clean_path(name), id(tensor) in adapters, fate, times.get(id(tensor), 0)
            )
        )
    foreign = [tensor for key, tensor in held.items() if key not in own]
    memory = {_place(tensor): clean_path(name) for name, tensor in named.items()}
    return OptimizerState(
        phases=tuple(
            (phase.name, tuple((len(items), rate) for items, rate in phase.groups))
            for phase in phases
        ),
        tensors=tuple(trainable),
        frozen=tuple(
            clean_path(own[key])
            for key, tensor in held.items()
            if key in own and not tensor.requires_grad
        ),
        foreign=len(foreign),
        foreign_shared=tuple(
            memory[_place(tensor)]
            for tensor in foreign
            if tensor.numel() and _place(tensor) in memory
        ),
        held=len(held),
        adapters=bool(adapters),
        notes=tuple(notes),
    )


def _place(tensor: Any) -> tuple[str, int]:
    """Where a tensor lies in memory; tensors without storage are each their own."""
    place = 0 if tensor.is_meta else int(tensor.data_ptr())
    return str(tensor.device), place or -id(tensor)
