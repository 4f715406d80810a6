"""The keys of a recipe, and the normal form of what may stand under each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from lora_doctor.errors import InputError

#: PEFT's TaskType, unchanged since 0.5; the wrapper class behind each is asked of the installed
#: PEFT, this list only catches typing errors before it is imported.
TASK_TYPES = (
    "CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION",
)  # fmt: skip
DTYPES = {
    "fp32": "float32", "float": "float32", "float32": "float32",
    "fp16": "float16", "half": "float16", "float16": "float16",
    "bf16": "bfloat16", "bfloat16": "bfloat16",
    "auto": "auto",
}  # fmt: skip
MAX_RANK = 1 << 16
#: Samples of a batch, tokens of a sample: more than anybody has.
MAX_COUNT = 1 << 24


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("is true or false")


def _rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise ValueError(f"is a whole number from 1 to {MAX_RANK}")
    return value


def _positive_number(value: Any) -> float | int:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value <= 0:
        raise ValueError("is a number above 0")
    return value  # type: ignore[no-any-return]


def _number_from_zero(value: Any) -> float | int:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value < 0:
        raise ValueError("is a number from 0 up")
    return value  # type: ignore[no-any-return]


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise ValueError("is a whole number from 1 up")
    return value


def _memory(value: Any) -> str:
    from lora_doctor.recipe.memory_size import parse_memory

    parse_memory(value)
    return str(value).strip()


def _probability(value: Any) -> float | int:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not 0 <= value < 1:
        raise ValueError("is a number from 0 up to, not including, 1")
    return value  # type: ignore[no-any-return]


def _names_or_regex(value: Any) -> str | list[str] | None:
    if value is None:
        return value
    if isinstance(value, str) and value.strip():
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is a regular expression that compiles ({error})") from None
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        names = sorted(value) if isinstance(value, (set, frozenset)) else list(value)
        if all(isinstance(name, str) and name.strip() for name in names):
            return names
    raise ValueError("is a list of module names, one regular expression, or 'all-linear'")


def _names(value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        raise ValueError("is a list of names")
    checked = _names_or_regex(value)
    return checked if isinstance(checked, list) else None


def _task_type(value: Any) -> str | None:
    value = getattr(value, "value", value)  # PEFT's enum
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        return None
    if isinstance(value, str) and value.upper() in TASK_TYPES:
        return value.upper()
    raise ValueError(f"is one of {', '.join(TASK_TYPES)} or none")


def _dtype(value: Any) -> str:
    name = str(value).removeprefix("torch.").lower()
    if name in DTYPES:
        return DTYPES[name]
    raise ValueError("is float32, float16, bfloat16 or auto")


def _text(value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError("is a text")


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _mapping(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise ValueError("is a mapping")


def _anything(value: Any) -> Any:
    return value


#: Keys that go to PEFT's LoraConfig and whose values we can judge. Any other field of the
#: installed LoraConfig is taken as it is.
ADAPTER_KEYS: dict[str, Callable[[Any], Any]] = {
    "peft_type": lambda value: _text(getattr(value, "value", value)).upper(),
    "task_type": _task_type,
    "target_modules": _names_or_regex,
    "exclude_modules": _names_or_regex,
    "target_parameters": _names,
    "modules_to_save": _names,
    "r": _rank,
    "lora_alpha": _positive_number,
    "lora_dropout": _probability,
    "use_rslora": _boolean,
    "use_dora": _boolean,
    "fan_in_fan_out": _boolean,
    "bias": _text,
    "rank_pattern": _mapping,
    "alpha_pattern": _mapping,
}
#: Keys of loading (``from_pretrained`` and ``BitsAndBytesConfig``) and of the training loop.
LOADING_KEYS: dict[str, Callable[[Any], Any]] = {
    "model_class": _text,
    "dtype": _dtype,
    "attn_implementation": _text,
    "load_in_4bit": _boolean,
    "load_in_8bit": _boolean,
    "bnb_4bit_quant_type": _text,
    "bnb_4bit_compute_dtype": _dtype,
    "bnb_4bit_use_double_quant": _boolean,
    "llm_int8_skip_modules": _names,
}
TRAINING_KEYS: dict[str, Callable[[Any], Any]] = {
    "gradient_checkpointing": _boolean,
    "gradient_checkpointing_kwargs": _mapping,
    # Mixed precision by the Trainer's names: autocast, for fp16 with a gradient scaler.
    "fp16": _boolean,
    "bf16": _boolean,
    "learning_rate": _number_from_zero,
    "per_device_train_batch_size": _count,
    "optim": _text,
}
#: What the memory plan is made for: TRL's ``max_length`` in tokens, and the memory of the GPU.
PLANNING_KEYS: dict[str, Callable[[Any], Any]] = {"max_length": _count, "memory_budget": _memory}
#: Arguments of ``get_peft_model`` itself, which no config of PEFT's holds.
WRAPPING_KEYS: dict[str, Callable[[Any], Any]] = {"autocast_adapter_dtype": _boolean}
#: All keys that are not for the constructor of PEFT's config.
OUTER_KEYS = {**LOADING_KEYS, **WRAPPING_KEYS, **TRAINING_KEYS, **PLANNING_KEYS}
#: Keys that mean the same under another name.
ALIASES = {
    "torch_dtype": "dtype", "rank": "r", "alpha": "lora_alpha",
    "max_seq_length": "max_length", "batch_size": "per_device_train_batch_size",
}  # fmt: skip
#: Fields of adapter_config.json that describe the file, not the training.
BOOKKEEPING_KEYS = frozenset(
    {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"}
)


def known_keys() -> frozenset[str]:
    """Every key that a recipe may have, with the fields of the installed LoraConfig."""
    from lora_doctor.static.installed.environment import lora_config_fields

    installed = lora_config_fields() or ()
    return frozenset({*ADAPTER_KEYS, *OUTER_KEYS, *BOOKKEEPING_KEYS, *installed})


def is_known_key(key: str) -> bool:
    """Whether a recipe may have this key. Without an installed PEFT its own fields are not known:
    then any name of an argument will do."""
    from lora_doctor.static.installed.environment import lora_config_fields

    if key in known_keys():
        return True
    return lora_config_fields() is None and key.isidentifier() and not key.startswith("_")


def check_value(key: str, value: Any, where: str) -> Any:
    """The value in its normal form.

    Raises:
        InputError: the value cannot be this key's; says where, which and what it must be.
    """
    checker = {**ADAPTER_KEYS, **OUTER_KEYS}.get(key, _anything)
    try:
        return checker(value)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: {key} {error}, not {_shown(value)}") from None


def _shown(value: Any) -> str:
    """The value for an error message, short whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits has no text
        return "a number with thousands of digits"
    return text if len(text) < 60 else text[:57] + "..."
