"""The normal form of what may stand under a key of the recipe.

Each function takes the value as the user gave it (an option, a file, an object of PEFT's) and
returns its normal form. It raises ``ValueError`` with what the value has to be, as a predicate
(``is a number above 0``): the caller puts the key and the place before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from lora_doctor.recipe.gpus import gpu_names
from lora_doctor.recipe.memory_size import parse_memory

NormalForm = Callable[[Any], Any]

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
#: ZeRO by its stages, and FSDP with all of the model divided.
SHARDINGS = ("zero1", "zero2", "zero3", "fsdp")
MAX_RANK = 1 << 16
#: Samples of a batch, tokens of a sample: more than anybody has.
MAX_COUNT = 1 << 24


def boolean(value: Any) -> bool:
    """``True`` or ``False``; 0 and 1 are neither."""
    if isinstance(value, bool):
        return value
    raise ValueError("is true or false")


def rank(value: Any) -> int:
    """The rank of an adapter, 1 to ``MAX_RANK``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise ValueError(f"is a whole number from 1 to {MAX_RANK}")
    return value


def positive_number(value: Any) -> float | int:
    """A finite number above 0."""
    if not _is_finite(value) or value <= 0:
        raise ValueError("is a number above 0")
    return value  # type: ignore[no-any-return]


def number_from_zero(value: Any) -> float | int:
    """A finite number, 0 or above."""
    if not _is_finite(value) or value < 0:
        raise ValueError("is a number from 0 up")
    return value  # type: ignore[no-any-return]


def probability(value: Any) -> float | int:
    """A number from 0 to 1."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError("is a number from 0 to 1")
    return value  # type: ignore[no-any-return]


def count(value: Any) -> int:
    """How many of something, 1 to ``MAX_COUNT``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise ValueError("is a whole number from 1 up")
    return value


def memory_size(value: Any) -> str:
    """A size of memory as the user wrote it, such as ``24GB``; ``parse_memory`` has its bytes."""
    parse_memory(value)
    return str(value).strip()


def sharding(value: Any) -> str:
    """What several processes divide among them, such as ``zero3``; DDP divides nothing."""
    name = re.sub(r"[-_ ]|stage", "", str(value).lower())
    if name in SHARDINGS:
        return name
    raise ValueError(f"is one of {', '.join(SHARDINGS)}")


def gpus(value: Any) -> list[str]:
    """Names of GPUs as ``gpus.toml`` has them, or ``cheapest`` alone."""
    return gpu_names(value)


def names_or_regex(value: Any) -> str | list[str] | None:
    """A list of names, or one regular expression for whole paths (``all-linear`` is a name)."""
    if value is None:
        return value
    if isinstance(value, str) and value.strip():
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is a regular expression that compiles ({error})") from None
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        found = sorted(value, key=str) if isinstance(value, (set, frozenset)) else list(value)
        if all(isinstance(name, str) and name.strip() for name in found):
            return found
    raise ValueError("is a list of module names, one regular expression, or 'all-linear'")


def names(value: Any) -> list[str] | None:
    """A list of names, never a regular expression."""
    if value is None:
        return None
    if isinstance(value, str):
        # Executed: `modules_to_save="lm_head"` trains a copy of every module that ends in one of
        # these letters, the whole model among them.
        raise ValueError("is a list of names (PEFT takes each letter of a text for one)")
    checked = names_or_regex(value)
    return checked if isinstance(checked, list) else None


def task_type(value: Any) -> str | None:
    """One of ``TASK_TYPES``, or ``None`` for PEFT's model without a task."""
    value = getattr(value, "value", value)  # PEFT's enum
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        return None
    if isinstance(value, str) and value in TASK_TYPES:
        return value
    raise ValueError(f"is one of {', '.join(TASK_TYPES)} or none, in capitals")


def peft_type(value: Any) -> str:
    """The kind of adapter in PEFT's spelling, such as ``LORA``."""
    return string(getattr(value, "value", value)).upper()


def dtype(value: Any) -> str:
    """The dtype by torch's long name, without ``torch.``; or ``auto``."""
    name = str(value).removeprefix("torch.").lower()
    if name in DTYPES:
        return DTYPES[name]
    raise ValueError("is float32, float16, bfloat16 or auto")


def string(value: Any) -> str:
    """A string that is not empty."""
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError("is a string")


def mapping(value: Any) -> dict[str, Any]:
    """A mapping with strings as its keys; nothing is an empty one."""
    if value is None:
        return {}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise ValueError("is a mapping")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    """Raises OverflowError for an integer that no float can hold."""
    return _is_number(value) and math.isfinite(value)
