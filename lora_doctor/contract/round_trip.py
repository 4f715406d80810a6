"""Adapters saved, reloaded and merged: the same logits must come out.

What else the files show (weights that did not come back, tied weights, another class) is kept in a
:class:`Saving`; the readings themselves are taken in ``saved_files``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_doctor.contract import saved_files
from lora_doctor.contract.locator import tensors_in
from lora_doctor.contract.measure import Difference, compare, outputs_of
from lora_doctor.contract.recorder import Recorder, Stop
from lora_doctor.results.round_trip import Saving
from lora_doctor.sandbox.temporary import temporary_folder
from lora_doctor.text import one_line, single_line

#: Relative to the largest absolute logit. Measured on healthy round trips: fp32 1e-7, fp16 1e-3,
#: bf16 1.1e-2; a lost adapter is off by 1e-1 and more.
MERGE_TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
RELOAD_TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}


@dataclass(frozen=True)
class RoundTripOptions:
    """What a round trip may look at. ``copyable``: memory allows copies of the whole model.
    ``user_weights``: the weights are those that the user trains from, so that the checkpoint that
    the config names is theirs. ``auto``: somebody chose the task type, and with it PEFT's auto
    class."""

    copyable: bool = True
    user_weights: bool = False
    auto: bool = False


def check_reload(
    recorder: Recorder,
    model: Any,
    fresh: Callable[[], Any],
    layers: list[Any],
    batch: Any,
    dtype: str,
    options: RoundTripOptions,
) -> Saving:
    """Saved and loaded onto a fresh base of equal weights, the adapters give the same logits."""
    name = "save-reload"
    path = saved_files.wrapped_at(model)
    if path is None:
        recorder.skip(name, "the adapters are not in a PEFT model")
        return Saving()
    saving = Saving(wrapped=path, tied=saved_files.tied_parts(model, layers))
    own = outputs_of(model, batch)
    try:
        with (
            temporary_folder() as text,
            warnings.catch_warnings(record=True) as caught,
        ):
            folder = Path(text)
            warnings.simplefilter("always")
            with recorder.guard(name):
                reloaded = saved_files.save_and_reload(model, fresh(), path, folder)
            warned = _warned(caught)
            saving = _read_files(saving, model, reloaded, layers, fresh, folder, options)
        with recorder.guard(name, reloaded):
            again = outputs_of(reloaded, batch)
    except Stop:
        return saving  # entered as failed; merging does not depend on it
    difference = compare(own, again)
    tolerance = RELOAD_TOLERANCE.get(dtype, 1e-5)
    same_class = type(reloaded) is type(model)
    good = difference.comparable and difference.relative <= tolerance and same_class
    details = [_text(difference)]
    if not same_class:
        details.append(f"{type(reloaded).__name__} instead of {type(model).__name__}")
    if saving.lost:
        details.append(f"not in the adapter folder: {', '.join(saving.lost[:4])}")
    recorder.add(name, good, _value(difference), _expected(tolerance), "; ".join(details + warned))
    return saving


def _read_files(
    saving: Saving,
    model: Any,
    reloaded: Any,
    layers: list[Any],
    fresh: Callable[[], Any],
    folder: Path,
    options: RoundTripOptions,
) -> Saving:
    lost, elements, elsewhere = saved_files.lost_modules(model, reloaded, layers)
    moved = saved_files.lost_statistics(model, reloaded)
    saving = replace(
        saving, lost=lost, lost_parameters=elements, lost_elsewhere=elsewhere, statistics=moved
    )
    if saving.wrapped or not options.copyable:
        return saving
    auto = saved_files.auto_loading(model, fresh, folder) if options.auto else None
    vocabulary = saved_files.vocabulary(model, folder) if options.user_weights else None
    return replace(saving, auto=auto, vocabulary=vocabulary)


def _warned(caught: list[warnings.WarningMessage]) -> list[str]:
    """PEFT's warnings about what is missing."""
    texts = [single_line(str(item.message))[:200] for item in caught]
    return [text for text in texts if "missing" in text or "config file" in text]


def check_merge(
    recorder: Recorder,
    model: Any,
    layers: list[Any],
    batch: Any,
    dtype: str,
    options: RoundTripOptions,
    saving: Saving,
) -> Saving:
    """Merged into the base weights, the adapters give the same logits.

    Where the whole model may not be copied, each adapted layer is merged alone.
    """
    name = "merge"
    path = saved_files.wrapped_at(model)
    inner = model.get_submodule(path) if path else model
    if not hasattr(getattr(inner, "base_model", None), "merge_and_unload"):
        recorder.skip(name, "PEFT cannot merge this kind of adapter")
        return saving
    if any(not p.is_floating_point() for p in model.parameters()):
        recorder.skip(name, "merging into quantized weights rounds them again")
        return saving
    adapted = [part for part in saving.tied if part.how == "adapter"]
    merged: Any = None
    try:
        with recorder.guard(name):
            if options.copyable:
                own = outputs_of(model, batch)
                merged = saved_files.merged_copy(model, path or "")
                difference = compare(own, outputs_of(merged, batch))
                value, detail = _value(difference), _text(difference)
                if adapted:
                    paths = ", ".join(part.path for part in adapted)
                    detail += f"; {paths} shares its weight with another module"
            elif adapted:
                value = None
                detail = f"merging {adapted[0].path} also changes {adapted[0].shares_with}"
            else:
                value, worst = merge_layer_by_layer(model, batch, layers)
                detail = f"measured layer by layer, largest at {worst}"
    except Stop as stop:
        if isinstance(stop.__cause__, NotImplementedError):
            recorder.unfail(name, f"PEFT cannot: {one_line(stop.__cause__, 200)}")
        return saving
    tolerance = MERGE_TOLERANCE.get(dtype, 1e-4)
    good = value is not None and value <= tolerance
    recorder.add(name, good, value, _expected(tolerance), detail)
    if good and merged is not None and saving.tied and not saving.wrapped:
        loaded, reason = saved_files.merged_through_files(merged)
        if loaded is not None:
            difference = compare(own, outputs_of(loaded, batch))
            reason = "" if difference.comparable else difference.why
            saving = replace(saving, merged_reload=_value(difference))
        saving = replace(saving, merged_error=reason)
    return saving


def _value(difference: Difference) -> float | None:
    return difference.relative if difference.comparable else None


def _text(difference: Difference) -> str:
    return difference.why or f"largest absolute difference {difference.absolute:.3g}"


def _expected(tolerance: float) -> str:
    return f"a relative difference of at most {tolerance:g}"


def merge_layer_by_layer(model: Any, batch: Any, layers: list[Any]) -> tuple[float, str]:
    """The largest relative difference that merging makes to the output of a single layer.

    For models too large to copy: each adapted layer is copied alone, merged, and run on the input
    that it gets in one forward. Returns the difference and the layer's path.
    """
    worst, worst_path = 0.0, ""
    handles = []

    def hook_of(path: str) -> Any:
        def hook(module: Any, inputs: Any, named: Any, output: Any) -> None:
            nonlocal worst, worst_path
            twin = copy.deepcopy(module)
            twin._forward_hooks.clear()
            twin.merge()
            difference = compare(list(_floats(output)), list(_floats(twin(*inputs, **named))))
            value = difference.relative if difference.comparable else float("inf")
            if value >= worst:
                worst, worst_path = value, path

        return hook

    for layer in layers:
        if hasattr(layer.module, "merge"):
            hook = hook_of(layer.path)
            handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
    try:
        outputs_of(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return worst, worst_path


def _floats(value: Any) -> Iterator[Any]:
    for tensor in tensors_in(value):
        if tensor.is_floating_point():
            yield tensor.float()
