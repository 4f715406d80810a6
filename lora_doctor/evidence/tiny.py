"""Evidence at depth ``tiny``: the same classes, shrunken, really trained for a few steps on random
weights.

Runs in a forked child; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_doctor.contract.contract import Contract, Subject
from lora_doctor.contract.recorder import is_out_of_memory
from lora_doctor.errors import EvidenceError
from lora_doctor.evidence import fewer_layers, kbit_preparation, quantized_layers, tiny_model_cache
from lora_doctor.model import training_setup
from lora_doctor.model.new_heads import loaded_again, new_heads
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.edit import REMOVE, Edit
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.note import Note
from lora_doctor.results.structure import ErrorReport
from lora_doctor.results.verification import Obstacle, Verification
from lora_doctor.sandbox.worker import report_progress
from lora_doctor.text import one_line, where

LEARNING_RATE = 1e-2


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    steps: int = 3,
    device: str = "cpu",
    patches: Sequence[Mapping[str, Any]] = (),
    made: str | None = None,
) -> dict[str, Any]:
    """Run the training contract on a tiny model of this source: :meth:`Verification.to_json`.

    Args:
        source: :meth:`ModelSource.to_json`. A factory's own module is run as it is.
        recipe: :meth:`Recipe.to_json`, open keys filled.
        steps: rounds of optimizer steps, one step per batch.
        device: a torch device.
        patches: ``{"name", "parameters"}`` of runtime patches, installed before loading.
        made: a file in which another task may have left the tiny model, and which it goes to.

    Raises:
        InputError: the source does not exist or is not what it should be.
    """
    from lora_doctor.model.loading import Loader

    installed = install_patches(patches)
    plan = Recipe.from_json(recipe)
    report_progress("finding the model's class")
    try:
        loader = Loader(source, plan)
        result = _verify(loader, plan, steps, device, made)
    except EvidenceError as error:
        result = Verification.undetermined(str(error), depth="tiny", device=device)
    return {**result.to_json(), "patches": installed}


def _verify(loader: Any, recipe: Recipe, steps: int, device: str, made: str | None) -> Verification:
    if loader.source["kind"] == "factory":
        model = loader.build()
        return _run(model, loader, None, training_setup.dtype_of(model), recipe, steps, device, [])
    shrunk = make(loader, made)
    return verify(
        shrunk.model,
        shrunk.batch,
        loader,
        recipe,
        steps,
        device,
        notes=tuple(Note("step", step) for step in shrunk.steps),
    )


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
    training_setup.wake_zero_weights(shrunk.model)
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


def verify(
    tiny: Any,
    first: Any,
    loader: Any,
    recipe: Recipe,
    steps: int,
    device: str,
    *,
    notes: Sequence[Note] = (),
    thorough: bool = True,
) -> Verification:
    """The training contract on a tiny model, in the recipe's dtype and quantization where this
    machine has them, else in float32, which the notes then say.

    Args:
        tiny: the model of :func:`make`; it is used up.
        first: its batch.
        thorough: also save, reload and merge, and let observers look.
    """
    dtype, told = _explicit_dtype(loader, recipe), list(notes)
    asked = recipe
    recipe, unfit = fewer_layers.fit(asked, tiny, loader.config)
    told += [
        Note("step", f"{key} {asked.get(key)!r:.80} -> {recipe.get(key)!r:.80}")
        for key in recipe.values
        if recipe.get(key) != asked.get(key)
    ]
    loads_otherwise = dtype != "float32" or recipe.quantized
    quantized_here = False
    reason = kind = ""
    obstacle: Obstacle | None = None
    raised: ErrorReport | None = None
    if loads_otherwise or recipe.mixed_precision:
        try:
            if loads_otherwise:
                model = _reload(tiny, recipe, dtype, device, told)
                quantized_here = bool(getattr(model, "is_quantized", False))
            else:
                model = copy.deepcopy(tiny)
            batch = copy.deepcopy(first)
            runs_in = dtype or training_setup.dtype_of(model)
            result = _run(
                model, loader, batch, runs_in, recipe, steps, device, told, unfit, thorough
            )
            reason, obstacle, raised = result.reason, result.obstacle, result.base_error
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {one_line(error, 200)} ({where(error)})"
            raised = ErrorReport(type(error).__name__, one_line(error), where(error))
        else:
            if quantized_here and quantized_layers.ended_early(result):
                result = _explained(result, tiny, recipe, first, dtype)
            if result.outcome != "undetermined":
                return result
            result = _judged(result, tiny, recipe, first, dtype)
            if result.outcome == "failed":
                return result
        # The base model does not run this way on this device: that is no fault of the recipe.
        mixed = f"{recipe.mixed_precision} autocast" if recipe.mixed_precision else None
        kind = ", ".join(filter(None, (dtype, recipe.quantized, mixed)))
        told.append(
            Note(
                "does-not-run" if obstacle == "base-model" else "not-proven",
                f"run in float32 without quantization, {kind} is not proven: {reason}",
                reason,
            )
        )
        recipe = recipe.edit((Edit("fp16", REMOVE), Edit("bf16", REMOVE)))
    result = _run(tiny, loader, first, "float32", recipe, steps, device, told, unfit, thorough)
    if quantized_here and result.outcome == "passed":
        # It was quantized and did not run: in float32 it is another model that trains.
        result = replace(
            result,
            outcome="undetermined",
            reason=f"the model does not run in {kind}: {reason}",
            obstacle="base-model",
            base_error=raised,
        )
    return result


def _run(
    model: Any,
    loader: Any,
    batch: Any,
    dtype: str,
    recipe: Recipe,
    steps: int,
    device: str,
    notes: list[Note],
    unfit: tuple[str, ...] = (),
    thorough: bool = True,
) -> Verification:
    if not getattr(model, "is_quantized", False):
        model.to(device)
    report_progress("making batches")
    try:
        batches = training_setup.make_batches(model, loader.factory_batches, batch, notes)
    except training_setup.NoBatch as error:
        return Verification.undetermined(
            str(error), depth="tiny", device=device, obstacle="batch", base_error=error.raised
        )
    heads = new_heads(model, loader.source)
    subject = Subject(
        base=model,
        batches=[training_setup.cast(one.to(device), dtype) for one in batches],
        wrap=training_setup.wrapper(model, recipe, loaded=loader.source["kind"] != "factory"),
        fresh=loaded_again(training_setup.fresh_base(model), heads),
        set_up=lambda wrapped: training_setup.set_up(wrapped, recipe),
        learning_rate=LEARNING_RATE,
        copyable=training_setup.is_copyable(model),
        user_weights=loader.source["kind"] == "factory",
        user_inputs=bool(loader.factory_batches),
        missing=training_setup.missing_inputs(model, batches),
        unfit=unfit,
        model_class=type(model).__name__,
        steps=notes,
        round_trip=thorough,
        observed=thorough,
        new_heads=heads,
    )
    report_progress("running the training contract")
    return Contract(subject, recipe, steps=steps, depth="tiny", device=device, dtype=dtype).run()


def _judged(
    result: Verification, model: Any, recipe: Recipe, batch: Any, dtype: str
) -> Verification:
    """:func:`kbit_preparation.judged`, where the tiny model was quantized."""

    def load() -> Any:
        with _saved(model) as folder:
            return _quantized(type(model), folder, recipe, dtype, result.device)

    if not recipe.quantized or batch is None or any(note.is_unproven for note in result.notes):
        return result
    return kbit_preparation.judged(result, load, recipe, batch.to(result.device), dtype)


def _explained(
    result: Verification, model: Any, recipe: Recipe, batch: Any, dtype: str
) -> Verification:
    """:func:`quantized_layers.explained`: the layers that must stay in floating point."""
    if batch is None:
        return result
    with _saved(model) as folder:

        def load(skip: list[str] | None) -> Any:
            edits = () if skip is None else (Edit("llm_int8_skip_modules", skip),)
            told = recipe.edit(edits)
            loaded = _quantized(type(model), folder, told, dtype, result.device)
            return training_setup.for_kbit_training(loaded, told)

        inputs = copy.deepcopy(batch).to(result.device)
        inputs = training_setup.cast(inputs, dtype or result.dtype)
        return quantized_layers.explained(result, model, load, recipe, inputs)


def _quantized(cls: Any, folder: str, recipe: Recipe, dtype: str, device: str) -> Any:
    options = training_setup.loading_options(recipe, dtype or None)
    quantization = training_setup.quantization_config(recipe)
    model = cls.from_pretrained(
        folder, quantization_config=quantization, device_map={"": device}, **options
    )
    bare = [
        path
        for path, layer in model.named_modules()
        if is_quantized_layer(layer) and not is_quantized_layer(getattr(layer, "weight", None))
    ]
    if bare:
        raise EvidenceError(
            f"transformers does not find what it has just saved: {len(bare)} quantized layers got "
            f"no weights, the first is {bare[0]}"
        )
    return model


def is_quantized_layer(value: Any) -> bool:
    """Whether a layer or a weight is one of bitsandbytes' own."""
    return type(value).__module__.partition(".")[0] == "bitsandbytes"


def _reload(model: Any, recipe: Recipe, dtype: str, device: str, notes: list[Note]) -> Any:
    """The tiny model saved and loaded again with the recipe's dtype and quantization.

    ``from_pretrained`` does more than ``.to(dtype)``: it keeps some layers in float32. ``notes`` is
    told when this transformers cannot quantize here.
    """
    options = training_setup.loading_options(recipe, dtype or "float32")
    with _saved(model) as folder:
        if recipe.quantized:
            try:
                loaded = _quantized(type(model), folder, recipe, dtype, device)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reason = f"{type(error).__name__}: {one_line(error, 160)}"
                text = f"run without {recipe.quantized} quantization, which is not proven: {reason}"
                notes.append(Note("not-proven", text, reason))
            else:
                return training_setup.for_kbit_training(loaded, recipe)
        return type(model).from_pretrained(folder, **options)


@contextlib.contextmanager
def _saved(model: Any) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="lora-doctor-") as folder:
        # Saving writes class names and dtypes into the config; the caller's stays as it is.
        config = copy.deepcopy(model.config)
        model.save_pretrained(folder, safe_serialization=True)
        model.config = config
        yield folder


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
