"""Adapters saved, reloaded and merged: the same logits must come out."""

from __future__ import annotations

import copy
import importlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from lora_doctor.evidence.locator import clean_path, one_line, tensors_in
from lora_doctor.ledger import Ledger, Stop
from lora_doctor.measure import Difference, compare, outputs_of

#: Relative to the largest absolute logit. Measured on healthy round trips: fp32 1e-7, fp16 1e-3,
#: bf16 1.1e-2; a lost adapter is off by 1e-1 and more.
MERGE_TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
RELOAD_TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}


def check_reload(
    ledger: Ledger, model: Any, fresh: Callable[[], Any], batch: Any, dtype: str
) -> None:
    """Saved and loaded onto a fresh base of equal weights, the adapters give the same logits."""
    name = "save-reload"
    if not isinstance(model, importlib.import_module("peft").PeftModel):
        return ledger.skip(name, "the adapters are not in a PEFT model")
    own = outputs_of(model, batch)
    try:
        with ledger.guard(name):
            reloaded, told = save_and_reload(model, fresh())
        with ledger.guard(name, reloaded):
            again = outputs_of(reloaded, batch)
    except Stop:
        return None  # entered as failed; merging does not depend on it
    difference = compare(own, again)
    tolerance = RELOAD_TOLERANCE.get(dtype, 1e-5)
    same_class = type(reloaded) is type(model)
    good = difference.comparable and difference.relative <= tolerance and same_class
    details = [_text(difference)]
    if not same_class:
        details.append(f"{type(reloaded).__name__} instead of {type(model).__name__}")
    ledger.add(name, good, _value(difference), _expected(tolerance), "; ".join(details + told))
    return None


def check_merge(
    ledger: Ledger, model: Any, layers: list[Any], batch: Any, dtype: str, *, copyable: bool
) -> None:
    """Merged into the base weights, the adapters give the same logits.

    ``copyable``: whether the whole model may be copied; else each adapted layer is merged alone.
    """
    name = "merge"
    if not hasattr(getattr(model, "base_model", None), "merge_and_unload"):
        return ledger.skip(name, "PEFT cannot merge this kind of adapter")
    if any(not p.is_floating_point() for p in model.parameters()):
        return ledger.skip(name, "merging into quantized weights rounds them again")
    tied = tied_to_others(model, layers)
    try:
        with ledger.guard(name):
            if copyable:
                difference = _merge_copy(model, batch)
                value, detail = _value(difference), _text(difference)
                if tied:
                    detail += f"; {', '.join(tied)} shares its weight with another module"
            elif tied:
                value = None
                detail = f"merging {tied[0]} also changes the module that shares its weight"
            else:
                value, path = merge_layer_by_layer(model, batch, layers)
                detail = f"measured layer by layer, largest at {path}"
    except Stop as stop:
        if isinstance(stop.__cause__, NotImplementedError):
            ledger.unfail(name, f"PEFT cannot: {one_line(stop.__cause__, 200)}")
        return None
    tolerance = MERGE_TOLERANCE.get(dtype, 1e-4)
    good = value is not None and value <= tolerance
    ledger.add(name, good, value, _expected(tolerance), detail)
    return None


def _merge_copy(model: Any, batch: Any) -> Difference:
    own = outputs_of(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.zero_grad(set_to_none=True)
        merged = copy.deepcopy(model).merge_and_unload()
    return compare(own, outputs_of(merged, batch))


def _value(difference: Difference) -> float | None:
    return difference.relative if difference.comparable else None


def _text(difference: Difference) -> str:
    return difference.why or f"largest absolute difference {difference.absolute:.3g}"


def _expected(tolerance: float) -> str:
    return f"a relative difference of at most {tolerance:g}"


def save_and_reload(model: Any, base: Any) -> tuple[Any, list[str]]:
    """Save the adapters of ``model`` and load them onto ``base``.

    Returns the new model and PEFT's warnings about what is missing; raises what PEFT raises.
    """
    import peft

    with (
        tempfile.TemporaryDirectory(prefix="lora-doctor-") as folder,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        model.save_pretrained(folder)
        reloaded = peft.PeftModel.from_pretrained(base, folder)
    told = [" ".join(str(item.message).split())[:200] for item in caught]
    return reloaded, [text for text in told if "missing" in text or "config file" in text]


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


def tied_to_others(model: Any, layers: list[Any]) -> list[str]:
    """Adapted layers whose weight is also another module's: merging into one changes the other."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(clean_path(name))
    adapted = {layer.path for layer in layers if hasattr(layer.module, "merge")}
    return sorted(
        path
        for names in owners.values()
        if len(names) > 1
        for path in {name.rpartition(".")[0] for name in names} & adapted
    )
