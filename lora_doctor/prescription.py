"""The prescription: the applied fixes as a file, and the training process that loads it.

import lora_doctor
applied = lora_doctor.apply("lora-doctor.prescription.json")   # first line of the script
model = AutoModelForCausalLM.from_pretrained(name, **applied.loading_kwargs())
model = get_peft_model(model, applied.lora_config())
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor.errors import InputError
from lora_doctor.fixes import REMOVE, Edit, Patch
from lora_doctor.recipe import Recipe, make_recipe
from lora_doctor.recipe_keys import LOADING_KEYS, TRAINING_KEYS, WRAPPING_KEYS, check_value

if TYPE_CHECKING:
    from lora_doctor.diagnosis import Diagnosis

SCHEMA_VERSION = "1"

_log = logging.getLogger("lora_doctor")

#: Whose versions decide whether a patch fits and what a key means.
_STACK = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
_QUANTIZATION_KEYS = (
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype",
    "bnb_4bit_use_double_quant", "llm_int8_skip_modules",
)  # fmt: skip


@dataclass(frozen=True)
class Prescription:
    """The applied fixes.

    ``model`` is the source in words. ``edits`` are the changes of the recipe, ``recipe`` all its
    values after them, ``patches`` the changes of the process. ``versions`` maps a package to the
    version that the fixes were tried with.
    """

    model: str
    edits: tuple[Edit, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    patches: tuple[Patch, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    schema_version: str = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """The content of the file; valid against ``schema/prescription-1.json``."""
        return {
            "schema_version": self.schema_version,
            "model": self.model,
            "edits": [edit.to_json() for edit in self.edits],
            "recipe": dict(self.recipe),
            "patches": [patch.to_json() for patch in self.patches],
            "versions": dict(self.versions),
        }


def make_prescription(diagnosis: Diagnosis) -> Prescription:
    """What the fixes that a diagnosis has applied amount to."""
    fixes = [item.fix for item in diagnosis.applied]
    packages = diagnosis.environment.get("packages") or {}
    fixed = diagnosis.fixed_recipe or diagnosis.recipe
    patches = [fix.patch for fix in fixes if fix.patch]
    return Prescription(
        model=str(diagnosis.model),
        edits=tuple(edit for fix in fixes for edit in fix.edits),
        recipe=dict(fixed.values),
        patches=tuple(patch for n, patch in enumerate(patches) if patch not in patches[:n]),
        versions={name: packages[name] for name in _STACK if packages.get(name)},
    )


def write_prescription(path: str | Path, prescription: Prescription) -> None:
    """Write the file, whole or not at all.

    Raises:
        InputError: it cannot be written there, or holds a value that JSON does not have.
    """
    from lora_doctor.writing import write_text

    try:
        text = json.dumps(prescription.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"prescription {str(path)!r}: cannot be written: {error}") from None
    write_text(path, text + "\n")


def read_prescription(path: str | Path) -> Prescription:
    """The prescription in a file, every part checked.

    Raises:
        InputError: unreadable, not a prescription, or of a schema that this version does not know.
    """
    from lora_doctor.recipes import json_format
    from lora_doctor.recipes.files import read_text

    path = Path(path)
    return parse_prescription(json_format.parse(read_text(path).text, path), str(path))


def parse_prescription(data: Mapping[str, Any], where: str) -> Prescription:
    """A checked prescription out of the content of its file. Raises InputError."""
    version = _take(data, "schema_version", str, where)
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{where}: has schema_version {version!r:.40}, this lora-doctor reads "
            f"{SCHEMA_VERSION!r}; make it anew with `lora-doctor fix --apply` or update lora-doctor"
        )
    _refuse_others(data, {item.name for item in fields(Prescription)}, where)
    versions = _take(data, "versions", dict, where)
    if not all(isinstance(value, str) for value in versions.values()):
        raise InputError(f"{where}: versions: each value is a text")
    edits = _take(data, "edits", list, where)
    patches = _take(data, "patches", list, where)
    recipe = make_recipe(
        _take(data, "recipe", dict, where),
        where=f"{where}: recipe", origin="file", complete=True, ignore_unknown=True,
    )  # fmt: skip
    return Prescription(
        model=_take(data, "model", str, where),
        edits=tuple(_edit(item, f"{where}: edits[{n}]") for n, item in enumerate(edits)),
        recipe=dict(recipe.values),
        patches=tuple(_patch(item, f"{where}: patches[{n}]") for n, item in enumerate(patches)),
        versions=versions,
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
        prescription = read_prescription(prescription)
    undo: Callable[[], None] = _nothing
    if prescription.patches:
        from lora_doctor.patches import PatchError, install_all

        try:
            undo = install_all(prescription.patches)
        except PatchError as error:
            tried = ", ".join(f"{name} {number}" for name, number in prescription.versions.items())
            hint = f" (the prescription was made for {tried})" if tried else ""
            raise PatchError(f"{error}{hint}; run `lora-doctor check` here") from error
        names = ", ".join(patch.name for patch in prescription.patches)
        _log.info("prescription for %s: patches in force: %s", prescription.model, names)
    return Applied(prescription, undo)


class Applied:
    """A prescription in force. As a context manager it is undone at the end."""

    def __init__(self, prescription: Prescription, undo: Callable[[], None]) -> None:
        self.prescription = prescription
        self._undo = undo

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Take the patches out again; twice is once."""
        self._undo()

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
        values = {**recipe.adapter_values(), **overrides}
        known = {item.name for item in fields(config_class) if item.init}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise InputError(
                f"recipe: {config_class.__name__} of PEFT {peft.__version__} has no "
                f"{', '.join(unknown)}; remove it or install the PEFT that the recipe is for"
            )
        return config_class(**values)

    def loading_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``: dtype, quantization, attention."""
        values = self.recipe_values
        kwargs: dict[str, Any] = {}
        if "dtype" in values:
            kwargs[_dtype_argument()] = _torch_dtype(values["dtype"])
        if values.get("load_in_4bit") or values.get("load_in_8bit"):
            from transformers import BitsAndBytesConfig

            quantization = {key: values[key] for key in _QUANTIZATION_KEYS if key in values}
            if "bnb_4bit_compute_dtype" in quantization:
                dtype = _torch_dtype(quantization["bnb_4bit_compute_dtype"])
                quantization["bnb_4bit_compute_dtype"] = dtype
            kwargs["quantization_config"] = BitsAndBytesConfig(**quantization)
        if "attn_implementation" in values:
            kwargs["attn_implementation"] = values["attn_implementation"]
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


def _dtype_argument() -> str:
    """transformers 4.56 renamed ``torch_dtype``; its config object shows which name it has."""
    import transformers

    return "dtype" if hasattr(transformers.PretrainedConfig(), "dtype") else "torch_dtype"


def _torch_dtype(name: str) -> Any:
    if name == "auto":
        return name
    import torch

    return getattr(torch, name)


def _take(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    names: dict[Any, str] = {str: "a text", list: "a list", dict: "a mapping"}
    if key not in data:
        raise InputError(f"{where}: has no {key!r}; it is not a prescription of lora-doctor")
    if not isinstance(data[key], kind):
        raise InputError(f"{where}: {key} is {names[kind]}, not a {type(data[key]).__name__}")
    return data[key]


def _refuse_others(data: Mapping[str, Any], known: set[str], where: str) -> None:
    others = sorted(data.keys() - known)
    if others:
        raise InputError(f"{where}: has {others[0]!r:.60}, which no prescription has; remove it")


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: is a {type(data).__name__}, not a mapping")
    return data


def _edit(data: Any, where: str) -> Edit:
    data = _mapping(data, where)
    key = _take(data, "key", str, where)
    if data.get("remove") is True and "value" not in data:
        _refuse_others(data, {"key", "remove"}, where)
        return Edit(key, REMOVE)
    if "value" not in data:
        raise InputError(f"{where}: has neither 'value' nor 'remove': true")
    _refuse_others(data, {"key", "value"}, where)
    return Edit(key, check_value(key, data["value"], where))


def _patch(data: Any, where: str) -> Patch:
    data = _mapping(data, where)
    _refuse_others(data, {"name", "parameters"}, where)
    return Patch(_take(data, "name", str, where), _take(data, "parameters", dict, where))


assert set(_QUANTIZATION_KEYS) <= set(LOADING_KEYS)
