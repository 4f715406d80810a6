"""Adapters saved, reloaded and merged: the same logits must come out.

What else the files show (weights that did not come back, tied weights, another class) is kept in a
:class:`Saving`; the readings themselves are taken in ``saved_files``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_doctor.contract import saved_files
from lora_doctor.contract.locator import tensors_in
from lora_doctor.contract.measure import Difference, compare, outputs_of, without_labels
from lora_doctor.contract.recorder import Recorder, Stop
from lora_doctor.model.error_reports import library_error
from lora_doctor.nn import wrapper_tensors
from lora_doctor.nn.copying import seed_everything
from lora_doctor.nn.dtypes import HALF, in_float32, to_float32
from lora_doctor.nn.rebinding import deep_copy
from lora_doctor.results.round_trip import QuantizedMerge, Saving
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.sandbox.temporary import temporary_folder
from lora_doctor.text import one_line, single_line

#: Relative to the largest absolute logit. Measured on healthy round trips: fp32 1e-7, fp16 1e-3,
#: bf16 1.1e-2; a lost adapter is off by 1e-1 and more.
MERGE_TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
RELOAD_TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}

#: The process that loads an adapter has drawn other random numbers than the one that trained it.
_OTHER_SEED = 1


@dataclass(frozen=True)
class RoundTripOptions:
    """What a round trip may look at. ``copyable``: memory allows copies of the whole model.
    ``user_weights``: the weights are those that the user trains from, so that the checkpoint that
    the config names is theirs. ``auto``: somebody chose the task type, and with it PEFT's auto
    class."""

    copyable: bool = True
    user_weights: bool = False
    auto: bool = False


@dataclass
class RoundTripRun:
    """One round trip of a trained model: saved and reloaded, then merged.

    ``fresh`` makes a base with the weights that the adapters were put on; ``layers`` are the
    adapted ones; ``dtype`` is that of most weights, by name. ``saving``: what has been seen so far.
    """

    recorder: Recorder
    model: Any
    fresh: Callable[[], Any]
    layers: list[Any]
    batch: Any
    dtype: str
    options: RoundTripOptions
    saving: Saving = field(default_factory=Saving)

    def check_reload(self) -> None:
        """Saved and loaded onto a fresh base of equal weights, the adapters give the same
        logits."""
        name = "save-reload"
        paths = saved_files.wrapped_at(self.model)
        if not paths:
            self.recorder.skip(name, "the adapters are not in a PEFT model")
            return
        tied = saved_files.tied_parts(self.model, self.layers)
        self.saving = Saving(wrapped=", ".join(paths), tied=tied)
        own = outputs_of(self.model, self.batch)
        try:
            with (
                temporary_folder() as text,
                warnings.catch_warnings(record=True) as caught,
            ):
                folder = Path(text)
                warnings.simplefilter("always")
                seed_everything(_OTHER_SEED)
                with self.recorder.guard(name):
                    reloaded = saved_files.save_and_reload(self.model, self.fresh(), paths, folder)
                warned = self._warned(caught)
                self._read_files(reloaded, folder)
            with self.recorder.guard(name, reloaded):
                own, again = self._both_outputs(own, reloaded)
        except Stop:
            return  # entered as failed; merging does not depend on it
        difference = compare(own, again)
        tolerance = RELOAD_TOLERANCE.get(self.dtype, 1e-5)
        same_class = type(reloaded) is type(self.model)
        good = difference.comparable and difference.relative <= tolerance and same_class
        details = [_text(difference)]
        if not same_class:
            details.append(f"{type(reloaded).__name__} instead of {type(self.model).__name__}")
        if self.saving.lost:
            details.append(f"not in the adapter folder: {', '.join(self.saving.lost[:4])}")
        detail = "; ".join(details + warned)
        self.recorder.add(name, good, _value(difference), _expected(tolerance), detail)

    def _warned(self, caught: list[warnings.WarningMessage]) -> list[str]:
        """PEFT's warnings about what is missing; all of them are noted."""
        texts = [single_line(str(item.message)) for item in caught]
        for text in dict.fromkeys(texts):
            self.recorder.warned("a library, saving and loading,", text)
        return [text[:200] for text in texts if "missing" in text or "config file" in text]

    def _both_outputs(self, own: list[Any], reloaded: Any) -> tuple[list[Any], list[Any]]:
        """What the trained and the reloaded model answer; without labels where the reloaded one
        gives no loss, as AdaLoRA's does when it is loaded to be used and not to be trained."""
        try:
            return own, outputs_of(reloaded, self.batch)
        except Exception as error:
            asked = without_labels(reloaded, self.batch)
            if is_out_of_memory(error) or asked is None:
                raise
            try:
                answers = outputs_of(self.model, asked), outputs_of(reloaded, asked)
            except Exception as other:
                if is_out_of_memory(other):
                    raise
                raise error from None
            text = "the reloaded adapters gave no loss, and were compared without labels"
            self.recorder.note("step", f"{text}: {one_line(error, 200)}", one_line(error, 200))
            return answers

    def _read_files(self, reloaded: Any, folder: Path) -> None:
        """What the adapter folder holds, and what did not come back from it."""
        lost, elements, elsewhere = saved_files.lost_modules(self.model, reloaded, self.layers)
        moved = saved_files.lost_statistics(self.model, reloaded)
        self.saving = replace(
            self.saving,
            lost=lost,
            lost_parameters=elements,
            lost_elsewhere=elsewhere,
            statistics=moved,
        )
        options = self.options
        if self.saving.wrapped or not options.copyable:
            return
        auto = saved_files.auto_loading(self.model, self.fresh, folder) if options.auto else None
        vocabulary = saved_files.vocabulary(self.model, folder) if options.user_weights else None
        self.saving = replace(self.saving, auto=auto, vocabulary=vocabulary)

    def check_merge(self) -> None:
        """Merged into the base weights, the adapters give the same logits.

        Where the whole model may not be copied, each adapted layer is merged alone.
        """
        name = "merge"
        recorder, model, batch = self.recorder, self.model, self.batch
        paths = saved_files.wrapped_at(model) or ("",)
        if not all(map(_can_merge, map(model.get_submodule, paths))):
            recorder.skip(name, "PEFT cannot merge this kind of adapter")
            return
        packed = any(
            not p.is_floating_point() or getattr(p, "quant_state", None) is not None
            for p in model.parameters()
        )
        if packed or wrapper_tensors.holds_any(model):
            recorder.skip(name, "merging into quantized weights rounds them again")
            tried = merge_quantized(model, batch, self.layers)
            self.saving = replace(self.saving, quantized_merge=tried)
            return
        adapted = [part for part in self.saving.tied if part.how == "adapter"]
        merged: Any = None
        try:
            with recorder.guard(name):
                if self.options.copyable:
                    own = outputs_of(model, batch)
                    merged = saved_files.merged_copy(model, paths)
                    difference = compare(own, outputs_of(merged, batch))
                    value, detail = _value(difference), _text(difference)
                    if adapted:
                        tied = ", ".join(part.path for part in adapted)
                        detail += f"; {tied} shares its weight with another module"
                elif adapted:
                    value = None
                    detail = f"merging {adapted[0].path} also changes {adapted[0].shares_with}"
                else:
                    value, worst = merge_layer_by_layer(model, batch, self.layers)
                    detail = f"measured layer by layer, largest at {worst}"
        except Stop as stop:
            if isinstance(stop.__cause__, NotImplementedError):
                recorder.unfail(name, f"PEFT cannot: {one_line(stop.__cause__, 200)}")
            return
        tolerance = MERGE_TOLERANCE.get(self.dtype, 1e-4)
        good = value is not None and value <= tolerance
        if not good and value is not None and self._only_rounds(paths, tolerance):
            detail += "; every layer merges within its rounding, and in float32 the whole does"
            recorder.note("step", f"merged in {self.dtype} the logits are others: {detail}")
            good = True
        recorder.add(name, good, value, _expected(tolerance), detail)
        if good and merged is not None and self.saving.tied and not self.saving.wrapped:
            self._reload_merged(own, merged)

    def _only_rounds(self, paths: tuple[str, ...], tolerance: float) -> bool:
        """Whether rounding alone makes the merged model answer otherwise: what picks experts picks
        others for a token that lay between two."""
        if self.dtype not in HALF or not self.options.copyable:
            return False
        if merge_layer_by_layer(self.model, self.batch, self.layers)[0] > tolerance:
            return False
        twin = in_float32(deep_copy(self.model))
        inputs = {name: to_float32(value) for name, value in self.batch.inputs.items()}
        batch = replace(self.batch, inputs=inputs)
        difference = compare(
            outputs_of(twin, batch), outputs_of(saved_files.merged_copy(twin, paths), batch)
        )
        return difference.comparable and difference.relative <= MERGE_TOLERANCE["float32"]

    def _reload_merged(self, own: Any, merged: Any) -> None:
        """The merged model through its files: tied weights may come back as one."""
        loaded, reason = saved_files.merged_through_files(merged)
        if loaded is not None:
            difference = compare(own, outputs_of(loaded, self.batch))
            reason = "" if difference.comparable else difference.why
            self.saving = replace(self.saving, merged_reload=_value(difference))
        self.saving = replace(self.saving, merged_error=reason)


def _can_merge(wrapped: Any) -> bool:
    return hasattr(getattr(wrapped, "base_model", None), "merge_and_unload")


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


def merge_quantized(model: Any, batch: Any, layers: list[Any]) -> QuantizedMerge | None:
    """What merging into quantized layers raises, or how far it rounds; ``None`` where there is
    nothing to merge. One layer of each kind is merged: quantizing all of a large model again takes
    minutes."""
    kinds = {type(layer.module): layer for layer in layers if hasattr(layer.module, "merge")}
    if not kinds:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of rounding, which is measured here
            value, path = merge_layer_by_layer(model, batch, [*kinds.values()])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return QuantizedMerge(library_error(error))
    return QuantizedMerge(None, value, path)


def _floats(value: Any) -> Iterator[Any]:
    for tensor in tensors_in(value):
        if tensor.is_floating_point():
            yield tensor.float()
