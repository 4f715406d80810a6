"""The recipe out of what was captured: adapter, loading and training, by our keys' names.

Used in the guest, whose training contract goes by it, and in the parent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.recipe.keys import TRAINING_KEYS
from lora_doctor.recipe.recipe import Recipe, make_recipe

#: Names of the Trainer's arguments, newest last, that mean a key of ours.
_SAME = {"activation_checkpointing": "gradient_checkpointing",
         "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs"}  # fmt: skip
#: Keys of a BitsAndBytesConfig that are keys of a recipe.
_QUANTIZATION = (
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype",
    "bnb_4bit_use_double_quant", "llm_int8_skip_modules",
)  # fmt: skip
_DTYPES = ("float32", "float16", "bfloat16", "auto")


def captured_recipe(
    adapter: Mapping[str, Any] | None,
    loading: Mapping[str, Any] | None,
    training: Mapping[str, Any] | None,
) -> Recipe:
    """The recipe, complete: what nobody set is left to PEFT and transformers.

    Args:
        adapter: the values of :class:`Recipe` of the adapter's config.
        loading: the record of a loaded model: ``model_class``, ``asked``.
        training: the arguments of the Trainer that somebody has set.

    Raises:
        InputError: a value is none that its key can have, and is no number or switch: what came of
            such a one the run itself tells.
    """
    values = dict(adapter or {})
    if loading is not None:
        values.update(_loading(loading))
    for name, value in (training or {}).items():
        key = _SAME.get(name, name)
        if key in TRAINING_KEYS and value is not None:
            values[key] = value
    if values.get("fp16") and values.get("bf16"):
        del values["fp16"]
    return make_recipe(
        values,
        where="dry run",
        origin="argument",
        complete=True,
        ignore_unknown=True,
        of_file=True,
    )


def _loading(record: Mapping[str, Any]) -> dict[str, Any]:
    asked = record.get("asked", {})
    values: dict[str, Any] = {"model_class": record["model_class"]}
    dtype = asked.get("dtype", asked.get("torch_dtype"))
    if isinstance(dtype, str) and dtype in _DTYPES:
        values["dtype"] = dtype
    if isinstance(asked.get("attn_implementation"), str):
        values["attn_implementation"] = asked["attn_implementation"]
    values.update({key: asked[key] for key in ("load_in_4bit", "load_in_8bit") if asked.get(key)})
    settings = asked.get("quantization_config") or record.get("stored_quantization")
    if isinstance(settings, Mapping):
        values.update(
            {key: settings[key] for key in _QUANTIZATION if settings.get(key) not in (None, False)}
        )
    if not values.get("load_in_4bit"):
        values = {key: item for key, item in values.items() if not key.startswith("bnb_4bit")}
    return values
