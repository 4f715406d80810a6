"""Norms: the variance that reaches them, and what another epsilon would do to their output.

A layer is a norm when it behaves like one: its output stays the same when each row of its input is
scaled, and changes with a small number among its attributes. No class is known by name.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lora_doctor.contract.observers.base import Observer, Setting
from lora_doctor.contract.observers.library_defaults import LibraryDefaults
from lora_doctor.model.module_path import pattern_of
from lora_doctor.results.observations import EpsilonEffect, NormReading
from lora_doctor.text import clean_path

LARGEST_EPSILON = 1e-2
#: A scale that drowns any epsilon, and how far two outputs may lie apart that only it separates.
_LOUD, _SAME = 2.0**12, 1e-3
_MAX_ELEMENTS = 1 << 22


@dataclass
class _Norm:
    """A layer that may turn out to be a norm. ``centred``: it subtracts the mean; ``owner`` and
    ``expected`` as in :class:`NormReading`."""

    path: str
    module: Any
    attribute: str
    epsilon: float
    owner: str | None = None
    expected: float | None = None
    is_norm: bool | None = None
    centred: bool = False
    variances: list[float] = field(default_factory=list)
    effects: tuple[EpsilonEffect, ...] = ()
    zero_row_finite: bool = True
    zero_rows: int = 0
    dtype: str = ""

    @property
    def change(self) -> float:
        return max((effect.change for effect in self.effects), default=0.0)


class Norms(Observer):
    """Fills ``Observations.norms``: one reading for layers that are alike."""

    field: ClassVar[str] = "norms"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._norms: list[_Norm] = []
        self._behaviours: dict[Any, tuple[bool, bool]] = {}

    def watch(self, model: Any) -> Iterable[Any]:
        self._norms = list(_candidates(model))
        owners = LibraryDefaults(model)
        for norm in self._norms:
            norm.owner = owners.of(norm.path)
            if self.setting.user_weights:  # a model of ours is what its class makes of it
                norm.expected = owners.expected(norm.path, norm.attribute, norm.epsilon)
            yield norm.module.register_forward_hook(self.hook(self._look(norm)))

    def _look(self, norm: _Norm) -> Any:
        def look(module: Any, inputs: Any, _output: Any) -> None:
            import torch

            # With more than one tensor (a gate) the rows that are normalised are not its input.
            tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
            if norm.is_norm is False or len(tensors) != 1 or not tensors[0].is_floating_point():
                return
            rows = tensors[0].detach()
            if not rows.numel() or not bool(torch.isfinite(rows).all()):
                return
            with torch.no_grad():
                if norm.is_norm is None:
                    key = (type(module), repr(module), norm.epsilon)
                    if key not in self._behaviours:
                        self._behaviours[key] = _behaviour(norm, rows)
                    norm.is_norm, norm.centred = self._behaviours[key]
                if norm.is_norm:
                    self._measure(norm, rows)

        return look

    def _measure(self, norm: _Norm, rows: Any) -> None:
        import torch

        wide = rows.float()
        variance = wide.var(-1, unbiased=False) if norm.centred else wide.pow(2).mean(-1)
        empty = ~wide.any(-1)
        norm.zero_rows += int(empty.sum())
        filled = variance[~empty]
        if not filled.numel():
            return
        quantiles = (filled.min(), filled.median(), filled.max())
        norm.variances += [float(value) for value in quantiles]
        if norm.dtype:
            return  # effects are measured on the first batch
        twin = _twin(norm.module)
        sample = rows if rows.numel() <= _MAX_ELEMENTS else rows[:1]
        if self.setting.dtype != self.setting.wanted_dtype:  # it could not be loaded so
            wanted = getattr(torch, self.setting.wanted_dtype)
            twin, sample = twin.to(wanted), sample.to(wanted)
        norm.dtype = str(sample.dtype).removeprefix("torch.")
        others = {other.epsilon for other in self._norms if other.is_norm is not False}
        others |= {norm.expected} if norm.expected is not None else set()
        norm.zero_row_finite = bool(torch.isfinite(twin.forward(torch.zeros_like(sample))).all())
        if not others - {norm.epsilon}:
            return
        own = twin.forward(sample).float()
        exact = _twin(twin).float().forward(sample.float())
        rounding = _distance(own, exact)
        effects = []
        for other in sorted(others - {norm.epsilon}):
            setattr(twin, norm.attribute, other)
            output = twin.forward(sample).float()
            growth = float(output.norm() / own.norm()) if own.any() else 1.0
            effects.append(EpsilonEffect(other, _distance(output, own), growth, rounding))
        norm.effects = tuple(effects)

    def readings(self) -> tuple[NormReading, ...]:
        groups: dict[Any, list[_Norm]] = {}
        for norm in self._norms:
            if norm.is_norm and norm.variances:
                kind = type(norm.module).__name__
                key = (pattern_of(clean_path(norm.path)), kind, norm.epsilon, norm.expected)
                groups.setdefault(key, []).append(norm)
        return tuple(_reading(pattern, norms) for (pattern, _, _, _), norms in groups.items())


def _reading(pattern: str, norms: list[_Norm]) -> NormReading:
    first = max(norms, key=lambda norm: norm.change)
    variances = [value for norm in norms for value in norm.variances]
    return NormReading(
        pattern=pattern,
        path=clean_path(first.path),
        class_name=type(first.module).__name__,
        count=len(norms),
        attribute=first.attribute,
        epsilon=first.epsilon,
        dtype=first.dtype,
        variance=(min(variances), statistics.median(variances), max(variances)),
        effects=first.effects,
        owner=None if first.owner is None else clean_path(first.owner),
        expected=first.expected,
        fresh=all(_is_fresh(norm.module) for norm in norms),
        zero_row_finite=all(norm.zero_row_finite for norm in norms),
        zero_rows=sum(norm.zero_rows for norm in norms),
    )


def _candidates(model: Any) -> Iterator[_Norm]:
    """Leaves that hold a small positive number, whatever it is called."""
    for path, module in model.named_modules():
        if next(module.children(), None) is not None:
            continue
        names = [
            name
            for name, value in vars(module).items()
            if isinstance(value, float) and 0 < value <= LARGEST_EPSILON
        ]
        if names:  # two of them: the one that is called epsilon
            name = next((name for name in names if "eps" in name), names[0])
            yield _Norm(path, module, name, float(getattr(module, name)))


def _behaviour(norm: _Norm, rows: Any) -> tuple[bool, bool]:
    """Whether this layer normalises the last dimension, and whether it subtracts the mean.

    Tried with normally distributed rows of the input's shape, in float32: the real ones may all be
    zeros.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (*(min(size, 2) for size in rows.shape[:-1]), rows.shape[-1])
    sample = torch.randn(shape, generator=generator).to(rows.device)
    scales = (1 + torch.rand((*shape[:-1], 1), generator=generator)).to(rows.device)
    twin = _twin(norm.module).float()
    try:
        loud = twin.forward(sample * _LOUD)
        scaled = twin.forward(sample * scales * _LOUD)
        shifted = twin.forward((sample + 3) * _LOUD)
        quiet = sample * norm.epsilon**0.5
        own = twin.forward(quiet)
        setattr(twin, norm.attribute, norm.epsilon * 100)
        other = twin.forward(quiet)
    except Exception:  # noqa: BLE001 - a layer that cannot be called so is no norm
        return False, False
    if not isinstance(loud, torch.Tensor) or loud.shape != sample.shape:
        return False, False
    is_norm = _distance(scaled, loud) < _SAME and _distance(other, own) > _SAME
    return is_norm, _distance(shifted, loud) < _SAME


def _twin(module: Any) -> Any:
    """A copy to try things on, without anybody's hooks."""
    twin = copy.deepcopy(module)
    for hooks in (twin._forward_hooks, twin._forward_pre_hooks):
        hooks.clear()
    return twin


def _is_fresh(module: Any) -> bool:
    """Whether its weights are as a norm starts: all ones or all zeros, or it has none."""
    return all(
        bool((parameter == 0).all()) or bool((parameter == 1).all())
        for parameter in module.parameters()
    )


def _distance(one: Any, two: Any) -> float:
    """Norm of the difference relative to the norm of the second."""
    two = two.float()
    size = float(two.norm())
    return float((one.float() - two).norm()) / size if size else 0.0
