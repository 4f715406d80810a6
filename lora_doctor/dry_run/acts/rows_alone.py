"""Whether two rows of a batch give alone what they give among all its rows. Where a model or its
loss makes something of several rows together, the training contract has to have them all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_doctor.dry_run.acts.batch_rows import Cut

#: How far the same row may lie apart in two batches, as a part of the values and of the loss: sums
#: are added up in another order. Both are of float32.
_APART, _LOSS_APART = 1e-3, 1e-4


def stand_alone(model: Any, batch: Mapping[str, Any], cut: Cut) -> bool:
    """Compare three forwards without gradients, in the mode that trains and without dropout: of the
    whole batch, of the rows that were cut out and, for the loss, of the others.

    Args:
        model: stays as it is; a copy runs.
        batch: what forward was given, by name.
        cut: the same in two parts.
    """
    import torch

    from lora_doctor.nn.copying import structural_copy, undisturbed
    from lora_doctor.nn.dtypes import in_float32

    if _has_batch_norm(model):
        return False
    with undisturbed(), torch.no_grad(), _unheard():
        try:
            # In half precision rounding hides what rows do to each other.
            twin = in_float32(structural_copy(model).train())
            whole = _answer(twin, batch, cut.rows, cut.count)
            few = _answer(twin, cut.few, range(len(cut.rows)), len(cut.rows))
            if not _same_outputs(whole, few):
                return False
            if whole.loss is None:
                return True
            rest = [row for row in range(cut.count) if row not in cut.rows]
            other = _answer(twin, cut.rest, range(len(rest)), len(rest))
        except Exception:  # noqa: BLE001 - the rows are no batch: the contract runs on all of them
            return False
    return _adds_up(whole.loss, few.loss, other.loss, cut)


@dataclass(frozen=True)
class _Answer:
    """``outputs``: the rows that were asked for, and numbers that are of no row. ``ran``: paths of
    the modules that something went through."""

    loss: float | None
    outputs: list[Any]
    ran: frozenset[str]


def _answer(model: Any, inputs: Mapping[str, Any], rows: Any, count: int) -> _Answer:
    from lora_doctor.contract.locator import tensors_in
    from lora_doctor.nn.copying import seed_everything
    from lora_doctor.nn.dtypes import to_float32
    from lora_doctor.tiny_model.batch.loss import output_loss
    from lora_doctor.tiny_model.batch.run_forward import CACHE_NAMES

    seed_everything(0)
    inputs = {name: to_float32(value) for name, value in inputs.items()}
    with _without_dropout(), _modules_that_run(model) as ran:
        result = model(**inputs)
    loss = output_loss(result)
    if hasattr(result, "items"):
        result = {k: v for k, v in result.items() if k not in ("loss", *CACHE_NAMES)}
    logits = getattr(result, "get", lambda name: None)("logits")
    tensors = [one for one in tensors_in(result) if one.is_floating_point() and one.numel()]
    if logits is not None:  # everything else with rows went into them
        tensors = [one for one in tensors if one is logits or not one.dim()]
    outputs = [_of_rows(one, list(rows), count) for one in tensors]
    return _Answer(None if loss is None else float(loss), outputs, frozenset(ran))


def _of_rows(output: Any, rows: list[int], count: int) -> Any:
    """A copy, so that the logits of all rows are kept no longer than it takes."""
    if not output.dim():
        return output.float()
    if output.shape[0] % count:
        raise ValueError(f"an output of {tuple(output.shape)} is not of {count} rows")
    return output.reshape(count, -1)[rows].float()


def _same_outputs(whole: _Answer, few: _Answer) -> bool:
    """Whether the same modules gave the same rows; experts that no token reaches are others."""
    if whole.ran != few.ran or len(whole.outputs) != len(few.outputs):
        return False
    return all(
        one.shape == two.shape and float((one - two).norm()) <= _limit(one) * float(one.norm())
        for one, two in zip(whole.outputs, few.outputs, strict=True)
    )


def _limit(output: Any) -> float:
    return _APART if output.dim() else _LOSS_APART


def _adds_up(whole: float, few: float | None, rest: float | None, cut: Cut) -> bool:
    """Whether the loss of all rows is that of its parts: what one row is to another is in neither.
    A part without labels has none."""
    if few is None or rest is None:
        return False
    return any(
        abs(whole - (a * few + (b * rest if b else 0.0))) <= _LOSS_APART * abs(whole)
        for a, b in cut.weights
    )


def _has_batch_norm(model: Any) -> bool:
    """Its running statistics say what the rows were, also where the forward does not."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) for module in model.modules())


@contextlib.contextmanager
def _modules_that_run(model: Any) -> Iterator[set[str]]:
    from lora_doctor.contract.locator import tensors_in

    ran: set[str] = set()
    handles = []
    for path, module in model.named_modules():

        def hook(_: Any, given: Any, named: Any, path: str = path) -> None:
            if any(one.numel() for one in tensors_in([given, named])):
                ran.add(path)

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def _without_dropout() -> Any:
    """A context in which torch's functions drop nothing: where they do, no two batches agree."""
    from torch.overrides import TorchFunctionMode

    class Kept(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), named: Any = None
        ) -> Any:
            name, named = getattr(func, "__name__", ""), dict(named or {})
            if "dropout" in name:
                return args[0] if args else named["input"]
            if name == "scaled_dot_product_attention":
                args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
                named.update({"dropout_p": 0.0} if "dropout_p" in named else {})
            return func(*args, **named)

    return Kept()


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """What libraries warn of is for the contract to hear, also what they say once in a process."""
    import logging

    from lora_doctor.model.library_answers import warnings_heard

    with warnings_heard(lambda library, text: None):
        yield
    once: Any = getattr(logging.Logger, "warning_once", None)
    if hasattr(once, "cache_clear"):
        once.cache_clear()
