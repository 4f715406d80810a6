"""The training contract on a module that the user has in memory, which stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_doctor.contract.contract import LEARNING_RATE, Contract
from lora_doctor.contract.random_weights import parameters_of_base
from lora_doctor.contract.subject import Subject
from lora_doctor.model import contract_batches, training_setup
from lora_doctor.model.peft_models import own_config
from lora_doctor.model.random_weights import loaded_again, missing_among
from lora_doctor.nn import dtypes
from lora_doctor.nn.copying import structural_copy, undisturbed
from lora_doctor.nn.rebinding import deep_copy
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.depth import STEPS
from lora_doctor.results.loading import MissingWeight
from lora_doctor.results.note import Note
from lora_doctor.results.verification import Verification
from lora_doctor.text import one_line

#: Random weights are far from any minimum.
TINY_LEARNING_RATE = 1e-2


def verify_module(
    module: Any,
    recipe: Any = None,
    batches: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    steps: int = STEPS,
    *,
    random_weights: bool = False,
    missing: Sequence[MissingWeight] = (),
) -> Verification:
    """Run the training contract on a copy of ``module`` that shares its frozen weights.

    Args:
        module: an ``nn.Module``, or one that is or holds a ``PeftModel``, whose adapters are
            then the ones that are tried. Weights, flags, modes and hooks stay as they are, and so
            do the random generators and torch's global switches.
        recipe: what :func:`as_recipe` takes; for a ``PeftModel`` its own config unless given.
        batches: forward arguments, one mapping or several; made from the signature unless given.
        steps: rounds of optimizer steps, one step per batch.
        random_weights: the module is a shrunken one that stands for a trained model: depth
            ``tiny``, and what depends on the values of its weights says nothing.
        missing: weights that the checkpoint lacks: the adapters are then loaded onto a base that
            has others there.

    Raises:
        InputError: ``recipe`` is not a recipe.
    """
    depth = "tiny" if random_weights else "full"
    device = str(next((p.device for p in module.parameters()), "cpu"))
    adapted = training_setup.is_adapted(module)
    plan = as_recipe(own_config(module) if recipe is None and adapted else recipe)
    given = [dict(batches)] if isinstance(batches, Mapping) else batches
    with undisturbed():
        try:
            shared = adapted or not training_setup.rewrites_weights(plan)
            twin = structural_copy(module) if shared else deep_copy(module)
        except Exception as error:  # noqa: BLE001 - any attribute of the user's may refuse
            return Verification.undetermined(
                f"{type(module).__name__} cannot be copied: {type(error).__name__}: "
                f"{one_line(error, 200)}; give a factory (package.module:function) instead",
                depth=depth,
                device=device,
            )
        run = _Run(plan, steps, device, depth, shared, tuple(missing))
        return _verify(twin, None if given is None else list(given), run)


@dataclass(frozen=True)
class _Run:
    """How the contract is run. ``shared``: the copy has the weights of somebody else."""

    recipe: Recipe
    steps: int
    device: str
    depth: str
    shared: bool
    missing: tuple[MissingWeight, ...] = ()


def _verify(model: Any, given: list[Mapping[str, Any]] | None, run: _Run) -> Verification:
    recipe, device, depth = run.recipe, run.device, run.depth
    notes: list[Note] = []
    training_setup.keep_quantized_layout(model)
    try:
        batches = contract_batches.make_batches(
            model, None if given is None else [dict(batch) for batch in given], None, notes
        )
    except contract_batches.NoBatch as error:
        return Verification.undetermined(
            str(error), depth=depth, device=device, obstacle="batch", base_error=error.raised
        )
    missing = missing_among(parameters_of_base(model), run.missing) if run.missing else {}
    fresh = training_setup.fresh_base(model, shared=run.shared)
    subject = Subject(
        base=model,
        batches=[batch.to(device) for batch in batches],
        wrap=training_setup.wrapper(model, recipe),
        fresh=loaded_again(fresh, [*filter(missing.get, missing)]),
        set_up=lambda wrapped: training_setup.set_up(wrapped, recipe),
        learning_rate=LEARNING_RATE if depth == "full" else TINY_LEARNING_RATE,
        copyable=training_setup.is_copyable(model),
        user_weights=depth == "full",
        user_inputs=bool(given),
        shared=run.shared,
        missing=contract_batches.missing_inputs(model, batches),
        model_class=type(model).__name__,
        steps=notes,
        missing_weights=missing,
    )
    dtype = dtypes.dtype_of(model)
    return Contract(subject, recipe, steps=run.steps, depth=depth, device=device, dtype=dtype).run()
