"""Evidence at depth ``tiny``: the same classes, shrunken, really trained for a few steps on random
weights.

Runs in a forked child; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lora_doctor.contract.contract import Contract
from lora_doctor.contract.precision import Precision
from lora_doctor.contract.subject import Subject
from lora_doctor.errors import EvidenceError
from lora_doctor.evidence import (
    fewer_layers,
    kbit_preparation,
    quantized_layers,
    stored_quantization,
    tiny_model_cache,
)
from lora_doctor.evidence.reload import (
    as_loaded,
    buffers_without_values,
    does_not_load,
    is_own_code,
    lacks_values,
    quantized,
    reload,
    saved,
)
from lora_doctor.evidence.sent_batch import as_sent
from lora_doctor.model import (
    checkpoint_quantization,
    contract_batches,
    error_reports,
    training_setup,
    zero_weights,
)
from lora_doctor.model.adapter_sizes import preparation
from lora_doctor.model.random_weights import loaded_again, missing_in
from lora_doctor.nn import dtypes, wrapper_tensors
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.edit import REMOVE, Edit
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.depth import STEPS
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.from_json import from_json
from lora_doctor.results.loading import MissingWeight
from lora_doctor.results.note import Note
from lora_doctor.results.verification import Obstacle, Verification
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.sandbox.worker import report_progress
from lora_doctor.text import one_line, where

LEARNING_RATE = 1e-2


@dataclass(frozen=True)
class TinyRun:
    """A tiny model, and how the training contract is run on it.

    ``model``: in float32, without adapters; it is used up. ``batch``: one that it takes, ``None``
    where a factory brings its own. ``loader``: of its class at full size. ``steps``: rounds of
    optimizer steps. ``dtype``: of the model that runs; empty leaves it to the library. ``notes``:
    what to say beside the result, added to on the way. ``unfit``: keys of the recipe that may name
    layers which this model is too small to have. ``thorough``: also save, reload and merge, and let
    observers look. ``missing``: what the checkpoint of the real model lacks.
    """

    model: Any
    batch: Any
    loader: Any
    recipe: Recipe
    steps: int
    device: str
    dtype: str = "float32"
    notes: list[Note] = field(default_factory=list)
    unfit: tuple[str, ...] = ()
    thorough: bool = True
    missing: tuple[MissingWeight, ...] = ()


@dataclass(frozen=True)
class _Attempt:
    """A run in the recipe's dtype and quantization: ``result`` is ``None`` where it raised.
    ``quantized``: whether the model that ran was. ``reason``, ``obstacle``, ``raised``: why it says
    nothing about the recipe, what kept it from that, and what the model raised."""

    result: Verification | None
    quantized: bool
    reason: str
    obstacle: Obstacle | None
    raised: ErrorReport | None


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    steps: int = STEPS,
    device: str = "cpu",
    patches: Sequence[Mapping[str, Any]] = (),
    made: str | None = None,
    missing: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Run the training contract on a tiny model of this source: :meth:`Verification.to_json`.

    Args:
        source: :meth:`ModelSource.to_json`. A factory's own module is run as it is.
        recipe: :meth:`Recipe.to_json`, open keys filled.
        steps: rounds of optimizer steps, one step per batch.
        device: a torch device.
        patches: ``{"name", "parameters"}`` of runtime patches, installed before loading.
        made: a file in which another task may have left the tiny model, and which it goes to.
        missing: each a :class:`MissingWeight` as JSON, of the checkpoint of the real model.

    Raises:
        InputError: the source does not exist or is not what it should be.
    """
    from lora_doctor.model.loading import Loader

    installed = install_patches(patches)
    plan = Recipe.from_json(recipe)
    report_progress("finding the model's class")
    try:
        loader = Loader(source, plan)
        found = tuple(from_json(MissingWeight, item) for item in missing)
        result = _verify(TinyRun(None, None, loader, plan, steps, device, missing=found), made)
    except EvidenceError as error:
        result = Verification.undetermined(str(error), depth="tiny", device=device)
    return {**result.to_json(), "patches": installed}


def _verify(planned: TinyRun, made: str | None) -> Verification:
    """The contract for a run that has no model yet."""
    if planned.loader.source["kind"] == "factory":
        model = planned.loader.build()
        return _contract(replace(planned, model=model, dtype=dtypes.dtype_of(model)))
    shrunk = make(planned.loader, made)
    notes = [*(Note("step", step) for step in shrunk.steps), *planned.loader.not_run()]
    return verify(replace(planned, model=shrunk.model, batch=shrunk.batch, notes=notes))


def make(loader: Any, made: str | None = None) -> Any:
    """A tiny model of the loader's class, with a batch: a `tiny_model.shrink.Shrunk`.

    Args:
        made: a file in which another task may have left it, and which it goes to.

    Raises:
        EvidenceError: none can be made; the text says why.
    """
    from lora_doctor.tiny_model.shrink.shrink import ShrinkError, shrink
    from lora_doctor.tiny_model.statistics import fit_statistics

    report_progress("building a tiny model")
    found = _from_cache(loader, made) if made is not None else None
    if found is not None:
        return found
    try:
        shrunk = shrink(loader.config, lambda config: loader.build("cpu", config=config))
    except ShrinkError as error:
        raise EvidenceError(f"no tiny model of this class can be made: {one_line(error)}") from None
    zero_weights.wake_zero_weights(shrunk.model)
    fit_statistics(shrunk.model, shrunk.batch)
    if made is not None:
        tiny_model_cache.write(made, shrunk)
    return shrunk


def _from_cache(loader: Any, made: str) -> Any:
    """What another task left there; ``None`` where there is nothing that can be used.

    The class is constructed once more, without its numbers: constructors fill tables of the library
    that forwards look into (transformers 5 keeps there which outputs a class records).
    """
    found = tiny_model_cache.read(made)
    if found is None:
        return None
    try:
        loader.build("meta", config=copy.deepcopy(found.config))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None  # it is made anew, and says there what is wrong
    return found


def verify(run: TinyRun) -> Verification:
    """The training contract on the tiny model of :func:`make`, in the recipe's dtype and
    quantization where this machine has them, else in float32, which the notes then say."""
    run = _fitted(run)
    if run.recipe.peft_type != "LORA":  # which reads no bias
        zero_weights.wake_zero_biases(run.model)
    if is_own_code(run.model):
        try:
            empty = buffers_without_values(run.model)
            run = replace(run, model=as_loaded(run.model))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return does_not_load(error, "tiny", run.device)
        if empty:
            return lacks_values(empty, "tiny", run.device)
    return _as_the_recipe_loads(run)


def _as_the_recipe_loads(run: TinyRun) -> Verification:
    stored = checkpoint_quantization.other_than_bitsandbytes(run.loader.config, run.recipe)
    if stored is not None:
        result = _as_stored(run, stored)
        if result is not None:
            return result
    if not _loads_otherwise(run) and not run.recipe.mixed_precision:
        return _contract(run)
    attempt = _attempt(run)
    result = attempt.result
    if result is not None:
        if attempt.quantized and quantized_layers.ended_early(result):
            result = _explained(result, run)
        if result.outcome == "undetermined":
            result = _judged(result, run)
        if result.outcome != "undetermined":
            return result
    return _in_float32(run, attempt)


def _as_stored(run: TinyRun, values: Mapping[str, Any]) -> Verification | None:
    """The contract on weights that are quantized as the checkpoint's are; ``None`` where that
    cannot be run here, which the notes then say."""
    method = str(values.get("quant_method") or "unnamed")
    try:
        model = stored_quantization.quantized_as(
            values, copy.deepcopy(run.model), run.recipe, run.dtype, run.device
        )
    except EvidenceError as error:
        text = f"run without the checkpoint's {method} quantization, which is not proven: {error}"
        if checkpoint_quantization.can_dequantize(values):
            text += " (--dequantize loads it in floating point, which can be run here)"
        run.notes.append(Note("not-proven", text, str(error)))
        return None
    run.notes.append(Note("step", f"weights quantized as the checkpoint's: {method}"))
    return _contract(replace(run, model=model, batch=copy.deepcopy(run.batch)))


def _fitted(run: TinyRun) -> TinyRun:
    """The run with the dtype that somebody asked for, and with layers that this model has."""
    asked = run.recipe
    fitted = fewer_layers.fitted(asked, run.model, run.loader)
    recipe = fitted.recipe
    notes = [
        Note("step", f"{key} {asked.get(key, 'by default')!r:.80} -> {recipe.get(key)!r:.80}")
        for key in recipe.values
        if recipe.get(key) != asked.get(key)
    ]
    if fitted.absent:
        names = ", ".join(fitted.absent)
        text = f"not adapted in the tiny model, which is too small to have it: {names}"
        notes.append(Note("not-adapted", text))
    made_before = preparation(recipe)
    if made_before:
        text = f"{made_before} was not run: the adapters start as LoRA does by default"
        notes.append(Note("choice", text))
    dtype = _explicit_dtype(run.loader, asked)
    return replace(run, recipe=recipe, unfit=fitted.unfit, dtype=dtype, notes=[*run.notes, *notes])


def _loads_otherwise(run: TinyRun) -> bool:
    """Whether the recipe loads the model in another form than it was made in."""
    return run.dtype != "float32" or run.recipe.quantized is not None


def _attempt(run: TinyRun) -> _Attempt:
    quantized = False
    try:
        if _loads_otherwise(run):
            model = reload(run.model, run.recipe, run.dtype, run.device, run.notes)
            quantized = bool(getattr(model, "is_quantized", False))
        else:
            model = copy.deepcopy(run.model)
        dtype = run.dtype or dtypes.dtype_of(model)
        result = _contract(replace(run, model=model, batch=copy.deepcopy(run.batch), dtype=dtype))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {one_line(error, 200)} ({where(error)})"
        raised = error_reports.model_error(error)
        return _Attempt(None, quantized, reason, None, raised)
    return _Attempt(result, quantized, result.reason, result.obstacle, result.base_error)


def _in_float32(run: TinyRun, attempt: _Attempt) -> Verification:
    """The base model does not run as the recipe loads it, on this device: that is no fault of the
    recipe."""
    recipe = run.recipe
    mixed = f"{recipe.mixed_precision} autocast" if recipe.mixed_precision else None
    kind = ", ".join(filter(None, (run.dtype, recipe.quantized, mixed)))
    run.notes.append(
        Note(
            "does-not-run" if attempt.obstacle == "base-model" else "not-proven",
            f"run in float32 without quantization, {kind} is not proven: {attempt.reason}",
            attempt.reason,
        )
    )
    plain = recipe.edit((Edit("fp16", REMOVE), Edit("bf16", REMOVE)))
    result = _contract(replace(run, recipe=plain, dtype="float32"))
    if attempt.quantized and result.outcome == "passed":
        # It was quantized and did not run: in float32 it is another model that trains.
        return replace(
            result,
            outcome="undetermined",
            reason=f"the model does not run in {kind}: {attempt.reason}",
            obstacle="base-model",
            base_error=attempt.raised,
        )
    return result


def _contract(run: TinyRun) -> Verification:
    """The training contract, executed on the run's model as it is."""
    model, recipe, factory = run.model, run.recipe, run.loader.source["kind"] == "factory"
    if not getattr(model, "is_quantized", False):
        model.to(run.device)
    report_progress("making batches")
    try:
        given = run.loader.factory_batches
        batches = contract_batches.make_batches(model, given, run.batch, run.notes)
    except contract_batches.NoBatch as error:
        return Verification.undetermined(
            str(error), depth="tiny", device=run.device, obstacle="batch", base_error=error.raised
        )
    shared = wrapper_tensors.holds_any(model)  # such weights are shared: not all can be copied
    missing = missing_in(model, run.missing)
    subject = Subject(
        base=model,
        batches=_as_sent(run, batches),
        wrap=training_setup.wrapper(model, recipe, loaded=not factory),
        fresh=loaded_again(
            training_setup.fresh_base(model, shared=shared), [*filter(missing.get, missing)]
        ),
        set_up=lambda wrapped: training_setup.set_up(wrapped, recipe),
        learning_rate=LEARNING_RATE,
        copyable=training_setup.is_copyable(model) and not shared,
        user_weights=factory,
        user_inputs=bool(given),
        missing=contract_batches.missing_inputs(model, batches),
        unfit=run.unfit,
        model_class=type(model).__name__,
        steps=run.notes,
        round_trip=run.thorough,
        observed=run.thorough,
        missing_weights=missing,
    )
    report_progress("running the training contract", device=run.device, dtype=run.dtype)
    contract = Contract(
        subject, recipe, steps=run.steps, depth="tiny", device=run.device, dtype=run.dtype
    )
    return contract.run()


def _as_sent(run: TinyRun, batches: Sequence[Any]) -> list[Any]:
    precision = Precision.of(run.recipe, run.dtype, run.device)
    if run.loader.factory_batches:
        return [contract_batches.cast(one.to(run.device), run.dtype) for one in batches]
    return [
        as_sent(run.model, one.to(run.device), run.dtype, precision, run.notes) for one in batches
    ]


def _judged(result: Verification, run: TinyRun) -> Verification:
    """:func:`kbit_preparation.judged`, where the tiny model was quantized."""

    def load() -> Any:
        with saved(run.model) as folder:
            return quantized(type(run.model), folder, run.recipe, run.dtype, result.device)

    unproven = any(note.is_unproven for note in result.notes)
    if not run.recipe.quantized or run.batch is None or unproven:
        return result
    batch = run.batch.to(result.device)
    return kbit_preparation.judged(result, load, run.recipe, batch, run.dtype)


def _explained(result: Verification, run: TinyRun) -> Verification:
    """:func:`quantized_layers.explained`: the layers that must stay in floating point."""
    if run.batch is None:
        return result
    with saved(run.model) as folder:

        def load(skip: list[str] | None) -> Any:
            edits = () if skip is None else (Edit("llm_int8_skip_modules", skip),)
            recipe = run.recipe.edit(edits)
            loaded = quantized(type(run.model), folder, recipe, run.dtype, result.device)
            return training_setup.for_kbit_training(loaded, recipe)

        inputs = copy.deepcopy(run.batch).to(result.device)
        inputs = contract_batches.cast(inputs, run.dtype or result.dtype)
        return quantized_layers.explained(result, run.model, load, run.recipe, inputs)


def _explicit_dtype(loader: Any, recipe: Recipe) -> str:
    """What somebody asked for; a dtype that we proposed ourselves is not worth the rounding.

    Except beside quantization, where it decides what the layers that are not quantized are: empty
    is the library's own choice, which is float16 in transformers 4.
    """
    wanted = recipe.get("dtype")
    if wanted is None or recipe.origins.get("dtype") == "proposed":
        return "" if recipe.quantized else "float32"
    if wanted == "auto":
        return loader.native_dtype or "float32"
    return str(wanted)
