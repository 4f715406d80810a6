"""The recipe: what the user is about to train, in PEFT's and transformers' own names.

A recipe holds only what somebody decided (an option, a file, a proposal of ours, a fix); what
nobody set is left to the installed PEFT and transformers, so their defaults are never copied here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_doctor.errors import InputError
from lora_doctor.fixes import REMOVE, Edit

Origin = Literal["option", "file", "argument", "proposed", "fix"]

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
    from lora_doctor.memory_plan.budget import parse_memory

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


@dataclass(frozen=True)
class Recipe:
    """What is to be trained. Immutable: ``edit`` and ``fill`` give a new recipe.

    ``values`` maps a key to its value, ``origins`` says who set it. ``complete``: everything that
    is not set is left to PEFT (an ``adapter_config.json``, a ``LoraConfig``); otherwise open keys
    are proposed by looking at the model.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    complete: bool = False

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def fill(self, values: Mapping[str, Any], origin: Origin = "proposed") -> Recipe:
        """A recipe in which the keys that nobody has set take these values."""
        new = {key: value for key, value in values.items() if key not in self.values}
        return self._with(new, origin)

    def override(self, values: Mapping[str, Any], origin: Origin) -> Recipe:
        """A recipe in which these values win."""
        return self._with(values, origin)

    def edit(self, edits: Iterable[Edit]) -> Recipe:
        """The recipe after the edits of a fix.

        An edit of ``task_type`` or a list to ``None`` sets it to ``None`` (PEFT knows the
        difference to "not set"); ``REMOVE`` takes the key out.
        """
        values, origins = dict(self.values), dict(self.origins)
        for change in edits:
            if change.value is REMOVE:
                values.pop(change.key, None)
                origins.pop(change.key, None)
            else:
                values[change.key] = check_value(change.key, change.value, "fix")
                origins[change.key] = "fix"
        return Recipe(values, origins, self.complete)

    def adapter_values(self) -> dict[str, Any]:
        """The keyword arguments of PEFT's config class; copies, because PEFT extends lists in place
        (its SEQ_CLS wrapper appends to ``modules_to_save``)."""
        skip = {*OUTER_KEYS, *BOOKKEEPING_KEYS, "peft_type"}
        return {key: deepcopy(value) for key, value in self.values.items() if key not in skip}

    @property
    def peft_type(self) -> str:
        return str(self.values.get("peft_type", "LORA"))

    @property
    def mixed_precision(self) -> Literal["float16", "bfloat16"] | None:
        """The dtype of autocast that the recipe asks the Trainer for."""
        if self.values.get("fp16"):
            return "float16"
        return "bfloat16" if self.values.get("bf16") else None

    @property
    def quantized(self) -> Literal["4bit", "8bit"] | None:
        """How the recipe asks transformers to quantize the base model."""
        if self.values.get("load_in_4bit"):
            return "4bit"
        return "8bit" if self.values.get("load_in_8bit") else None

    def to_json(self) -> dict[str, Any]:
        """For reports: values, who set each, and whether the rest is PEFT's business."""
        return {
            "values": dict(self.values),
            "origins": dict(self.origins),
            "complete": self.complete,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        return cls(dict(data["values"]), dict(data["origins"]), bool(data["complete"]))

    def _with(self, values: Mapping[str, Any], origin: Origin) -> Recipe:
        origins = {**self.origins, **dict.fromkeys(values, origin)}
        return Recipe({**self.values, **values}, origins, self.complete)


def known_keys() -> frozenset[str]:
    """Every key that a recipe may have, with the fields of the installed LoraConfig."""
    from lora_doctor.evidence.environment import lora_config_fields

    installed = lora_config_fields() or ()
    return frozenset({*ADAPTER_KEYS, *OUTER_KEYS, *BOOKKEEPING_KEYS, *installed})


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


def make_recipe(
    values: Mapping[str, Any],
    *,
    where: str,
    origin: Origin,
    complete: bool = False,
    ignore_unknown: bool = False,
) -> Recipe:
    """A checked recipe out of raw values.

    ``ignore_unknown`` keeps keys that nobody knows out of the recipe instead of refusing them:
    an ``adapter_config.json`` may have been written by a newer PEFT.

    Raises:
        InputError: a key is unknown (with the nearest known one) or a value impossible.
    """
    checked: dict[str, Any] = {}
    known: frozenset[str] | None = None
    other_peft_type = str(values.get("peft_type", "LORA")).upper().rpartition(".")[2] != "LORA"
    for raw_key, value in values.items():
        if not isinstance(raw_key, str):
            raise InputError(f"{where}: key {raw_key!r} is not a text; keys are PEFT's names")
        key = ALIASES.get(raw_key, raw_key)
        if key not in ADAPTER_KEYS and key not in OUTER_KEYS:
            known = known or known_keys()
            if key not in known and not other_peft_type:
                if ignore_unknown:
                    continue
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
                hint = f"; did you mean {near[0]!r}?" if near else "; see PEFT's LoraConfig"
                raise InputError(f"{where}: unknown key {key!r}{hint}")
        if key in checked:
            raise InputError(f"{where}: {key!r} is given twice (as {raw_key!r} too)")
        if key == "r" and value == 0 and other_peft_type:
            continue  # OFT: the rank follows from the block size
        checked[key] = check_value(key, value, where)
    for one, other in (("load_in_4bit", "load_in_8bit"), ("fp16", "bf16")):
        if checked.get(one) and checked.get(other):
            raise InputError(f"{where}: {one} and {other} exclude each other; keep one")
    return Recipe(checked, dict.fromkeys(checked, origin), complete)


def parse_target_modules(text: str, where: str = "--target-modules") -> str | list[str]:
    """An option's names separated by commas, a regular expression, or all-linear.

    Raises:
        InputError: the text is empty or a regular expression that does not compile.
    """
    if text == "all-linear":
        return text
    if re.search(r"[\\*+?()\[\]|^$]", text):
        try:
            re.compile(text)
        except re.error as error:
            raise InputError(f"{where}: {text!r} is not a regular expression: {error}") from None
        return text
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"{where}: no name given; write q_proj,v_proj or all-linear")
    return names


def as_recipe(recipe: Any) -> Recipe:
    """A recipe out of what the Python API takes.

    ``None`` (all open), a :class:`Recipe`, a mapping, a PEFT config object, or the path of a file.

    Raises:
        InputError: none of these, or the content is not a recipe.
    """
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, (str, Path)):
        from lora_doctor.recipes import read_recipe

        return read_recipe(Path(recipe))
    if isinstance(recipe, Mapping):
        return make_recipe(recipe, where="recipe", origin="argument")
    if hasattr(recipe, "to_dict") and hasattr(recipe, "peft_type"):
        values = {key: value for key, value in recipe.to_dict().items() if _is_plain(value)}
        return make_recipe(
            values, where="recipe", origin="argument", complete=True, ignore_unknown=True
        )
    raise InputError(
        f"recipe: expected a mapping, a PEFT config or a path, got {type(recipe).__name__}"
    )


def _is_plain(value: Any) -> bool:
    """Whether JSON can carry it; PEFT configs also hold runtime objects that mean nothing here."""
    if isinstance(value, (set, frozenset, list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (str, int, float, bool)) or hasattr(value, "value")
