"""The prescription: the applied fixes as a file, and the training process that loads it.

import lora_doctor
applied = lora_doctor.apply("lora-doctor.prescription.json")   # first line of the script
model = AutoModelForCausalLM.from_pretrained(name, **applied.loading_kwargs())
model = get_peft_model(model, applied.lora_config())
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor.errors import InputError, PatchError
from lora_doctor.model import checkpoint_quantization, training_setup
from lora_doctor.recipe.edit import ENTRY
from lora_doctor.recipe.files.prescription import Prescription, read_prescription
from lora_doctor.recipe.keys import TRAINING_KEYS, WRAPPING_KEYS
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.text import visible

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis


_log = logging.getLogger("lora_doctor")

#: Whose versions decide whether a patch fits and what a key means.
_STACK = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def make_prescription(diagnosis: Diagnosis) -> Prescription:
    """What the fixes that a diagnosis has applied amount to."""
    fixes = [item.fix for item in diagnosis.applied]
    packages = diagnosis.environment.get("packages") or {}
    fixed = diagnosis.fixed_recipe or diagnosis.recipe
    patches = [fix.patch for fix in fixes if fix.patch]
    return Prescription(
        model=str(diagnosis.model),
        # What is no key of a recipe is in the user's file, and what it does in the recipe.
        edits=tuple(edit for fix in fixes for edit in fix.edits if not edit.key.startswith(ENTRY)),
        recipe=dict(fixed.values),
        patches=tuple(patch for n, patch in enumerate(patches) if patch not in patches[:n]),
        versions={name: packages[name] for name in _STACK if packages.get(name)},
    )


def apply(prescription: str | Path | Prescription) -> Applied:
    """Put the fixes of a prescription in force in this process.

    Call it before the model is loaded. The patches act at once; the edits are handed out by the
    returned object. A second call changes nothing. Without patches, nothing heavy is imported.

    Raises:
        InputError: the file is no prescription, or names a patch that does not exist.
        PatchError: a patch does not fit the installed libraries; none is in force then.
    """
    if not isinstance(prescription, Prescription):
        prescription = checked_prescription(prescription)
    undo: Callable[[], None] = _nothing
    if prescription.patches:
        from lora_doctor.prescription.patches import install_all

        try:
            undo = install_all(prescription.patches)
        except PatchError as error:
            tried = ", ".join(f"{name} {number}" for name, number in prescription.versions.items())
            hint = f" (the prescription was made for {tried})" if tried else ""
            raise PatchError(f"{error}{hint}; run `lora-doctor check` here") from error
        names = ", ".join(patch.name for patch in prescription.patches)
        model = visible(prescription.model)
        _log.info("prescription for %s: patches in force: %s", model, names)
    return Applied(prescription, undo)


def checked_prescription(path: str | Path) -> Prescription:
    """The prescription in a file; its patches are there, nothing is put in force.

    Raises:
        InputError: it is no prescription, or names a patch or an argument of one that does not
            exist.
    """
    from lora_doctor.prescription.patches import check_patch

    prescription = read_prescription(path)
    for number, patch in enumerate(prescription.patches):
        check_patch(patch, f"{path}: patches[{number}]")
    return prescription


class Applied:
    """A prescription in force. As a context manager it is undone at the end."""

    def __init__(self, prescription: Prescription, undo: Callable[[], None]) -> None:
        self.prescription = prescription
        self._undo = undo
        self._in_force = True

    def __repr__(self) -> str:
        names = ", ".join(visible(patch.name) for patch in self.prescription.patches)
        state = "patches in force" if self._in_force else "patches taken out"
        model = visible(self.prescription.model)
        return f"<Applied: prescription for {model}; {state}: {names or 'none'}>"

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Take the patches out again; twice is once."""
        self._undo()
        self._in_force = False

    @property
    def recipe(self) -> Recipe:
        """The recipe after the fixes."""
        values = dict(self.prescription.recipe)
        recipe = Recipe(values, dict.fromkeys(values, "file"), complete=True)
        return recipe.edit(self.prescription.edits)

    @property
    def recipe_values(self) -> dict[str, Any]:
        """Key and value of everything that the recipe sets, after the fixes."""
        return dict(self.recipe.values)

    def edited(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Your own recipe (PEFT's and transformers' key names) with the edits applied."""
        return dict(Recipe(dict(values)).edit(self.prescription.edits).values)

    def lora_config(self, **overrides: Any) -> Any:
        """The PEFT config of the fixed recipe (``LoraConfig`` unless it sets ``peft_type``).

        Raises:
            InputError: the installed PEFT has no such adapter type, or no such field.
        """
        import peft

        recipe = self.recipe
        # PEFT's table is keyed by texts in old versions, by an enum in new ones.
        table = peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()
        classes = {str(getattr(kind, "value", kind)): found for kind, found in table}
        config_class = classes.get(recipe.peft_type)
        if config_class is None:
            raise InputError(
                f"recipe: PEFT {peft.__version__} has no adapter type {recipe.peft_type!r}"
            )
        values = {**recipe.config_arguments(), **overrides}
        known = {item.name for item in fields(config_class) if item.init}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise InputError(
                f"recipe: {config_class.__name__} of PEFT {peft.__version__} has no "
                f"{', '.join(unknown)}; remove it or install the PEFT that the recipe is for"
            )
        return config_class(**values)

    def loading_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``: dtype, quantization, attention.

        Raises:
            InputError: the recipe dequantizes a checkpoint for which that is not possible.
        """
        recipe = self.recipe
        kwargs = training_setup.loading_options(recipe, recipe.get("dtype"))
        if recipe.get("load_in_4bit") or recipe.get("load_in_8bit"):
            kwargs["quantization_config"] = training_setup.quantization_config(recipe)
        elif recipe.get("dequantize"):
            kwargs["quantization_config"] = checkpoint_quantization.dequantizing_checkpoint(
                self.prescription.model
            )
        return kwargs

    def training_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for ``TrainingArguments``: checkpointing, mixed precision."""
        return {key: value for key, value in self.recipe_values.items() if key in TRAINING_KEYS}

    def wrapping_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for ``get_peft_model`` beside the config; those that it has here."""
        import peft

        known = inspect.signature(peft.get_peft_model).parameters
        values = self.recipe_values
        return {key: values[key] for key in WRAPPING_KEYS if key in values and key in known}


def _nothing() -> None:
    """The way back from a prescription without patches."""
