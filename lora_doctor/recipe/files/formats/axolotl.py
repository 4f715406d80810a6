"""axolotl: the YAML of ``axolotl train``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lora_doctor.recipe.edit import REMOVE
from lora_doctor.recipe.files.framework import Framework
from lora_doctor.recipe.files.named_paths import of_datasets, of_entries
from lora_doctor.recipe.files.read_as import boolean, integer, names, number, positive, text
from lora_doctor.recipe.files.remark import Remark
from lora_doctor.recipe.files.spelling import Spelling, Spellings
from lora_doctor.recipe.files.together import Together, more_than_zero, on, remarks_on
from lora_doctor.static.installed.framework_fields import Sources

NAME = "axolotl"
SPECIFICITY = 20
COMPLETE = True
IGNORES_UNKNOWN = False


def _targets(value: Any) -> Any:
    return value if isinstance(value, str) else names(value)


def _checkpointing(value: Any) -> bool:
    return True if value in ("offload", "offload_disk", "unsloth") else boolean(value)


def _automatic(value: Any) -> Any:
    """``auto`` is bfloat16 wherever the GPU has it, which every one since 2020 does."""
    return True if str(value).lower() in ("auto", "full") else boolean(value)


#: Attention that axolotl brings itself, and what it loads the model with instead.
_OWN_ATTENTION = {"xformers": None, "sage": None, "flash_attention_torch": None, "fp8": "sdpa"}


def _attention_of(value: Any) -> Any:
    return _OWN_ATTENTION[value] if value in _OWN_ATTENTION else text(value)


SPELLINGS = Spellings(
    Spelling("target_modules", "lora_target_modules", _targets),
    Spelling("exclude_modules", "lora_exclude_modules", _targets),
    Spelling("target_parameters", "lora_target_parameters", names),
    Spelling("modules_to_save", "lora_modules_to_save", names),
    Spelling("r", "lora_r", integer),
    Spelling("lora_alpha", "lora_alpha", number),
    Spelling("lora_dropout", "lora_dropout", number),
    Spelling("fan_in_fan_out", "lora_fan_in_fan_out", boolean),
    Spelling("use_rslora", "peft_use_rslora", boolean),
    Spelling("use_dora", "peft_use_dora", boolean),
    Spelling("rank_pattern", "lora_rank_pattern"),
    Spelling("alpha_pattern", "lora_alpha_pattern"),
    Spelling("layers_to_transform", "peft_layers_to_transform"),
    Spelling("layers_pattern", "peft_layers_pattern"),
    Spelling("init_lora_weights", "peft_init_lora_weights"),
    Spelling("trainable_token_indices", "peft_trainable_token_indices"),
    Spelling("autocast_adapter_dtype", "peft_autocast_adapter_dtype", boolean),
    Spelling("load_in_4bit", "load_in_4bit", boolean),
    Spelling("load_in_8bit", "load_in_8bit", boolean),
    Spelling("attn_implementation", "attn_implementation", _attention_of),
    Spelling("gradient_checkpointing", "gradient_checkpointing", _checkpointing),
    Spelling("gradient_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
    Spelling("bf16", "bf16", _automatic),
    Spelling("fp16", "fp16", _automatic),
    Spelling("max_length", "sequence_len", integer),
    Spelling("packing", "sample_packing", boolean),
    Spelling("learning_rate", "learning_rate", number),
    Spelling("per_device_train_batch_size", "micro_batch_size", integer),
    Spelling("gradient_accumulation_steps", "gradient_accumulation_steps", integer),
    Spelling("num_train_epochs", "num_epochs", number),
    Spelling("max_steps", "max_steps", positive),
    Spelling("warmup_ratio", "warmup_ratio", number),
    Spelling("warmup_steps", "warmup_steps", number),
    Spelling("optim", "optimizer"),
    Spelling("use_liger_kernel", "liger_fused_linear_cross_entropy", boolean),
    Spelling("cut_cross_entropy", "cut_cross_entropy", boolean),
)

#: The switches of older files, in axolotl's own order.
_ATTENTION = {
    "xformers_attention": "", "sage_attention": "", "flex_attention": "flex_attention",
    "flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager",
}  # fmt: skip


def _finish(values: dict[str, Any], entries: Mapping[str, Any]) -> None:
    """What ``loaders/`` and ``utils/config`` of axolotl make of several entries."""
    values["task_type"] = "CAUSAL_LM"
    _of_class(values, entries)
    if boolean(entries.get("lora_target_linear") or False):
        values["target_modules"] = "all-linear"
    if values.get("bf16"):
        values.pop("fp16", None)
    if values.get("bf16") or entries.get("bfloat16"):
        values["dtype"] = "bfloat16"
    elif values.get("load_in_8bit") or values.get("fp16") or entries.get("float16"):
        values["dtype"] = "float16"
    else:
        values["dtype"] = "float32"
    if values.get("load_in_4bit"):
        options = entries.get("bnb_config_kwargs") or {}
        values["bnb_4bit_quant_type"] = "nf4"
        values["bnb_4bit_use_double_quant"] = True
        values["bnb_4bit_compute_dtype"] = values["dtype"]
        for key in ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant"):
            values[key] = options.get(key, values[key]) if isinstance(options, Mapping) else True
    for name, meant in _ATTENTION.items():
        if entries.get(name) and "attn_implementation" not in values and meant:
            values["attn_implementation"] = meant
    if values.get("gradient_checkpointing"):
        values.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": True})


#: Heads for which ``_get_peft_task_type`` has another task type, by a part of the class's name.
_HEADS = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}


def _of_class(values: dict[str, Any], entries: Mapping[str, Any]) -> None:
    """The class of a reward model, which ``model_type`` names, and its task type."""
    name = str(entries.get("model_type") or entries.get("type_of_model") or "")
    for part, task in _HEADS.items():
        if part in name:
            values["model_class"], values["task_type"] = name, task


def _write(key: str, value: Any, entries: Mapping[str, Any]) -> dict[str, Any] | None:
    """``lora_target_linear`` and ``lora_target_modules`` are two ways to say one thing."""
    if key != "target_modules" or value is REMOVE:
        return None
    linear = "lora_target_linear" in entries
    if value == "all-linear":
        taken = {"lora_target_modules": REMOVE} if "lora_target_modules" in entries else {}
        return {**taken, "lora_target_linear": True}
    return {**({"lora_target_linear": REMOVE} if linear else {}), "lora_target_modules": value}


def _plugins(entries: Mapping[str, Any]) -> set[str]:
    """``liger`` for ``axolotl.integrations.liger.LigerPlugin``; empty for somebody else's."""
    given = entries.get("plugins") or ()
    named = [str(one) for one in (given if isinstance(given, (list, tuple)) else [given])]
    own = "axolotl.integrations."
    return {one.removeprefix(own).partition(".")[0] if one.startswith(own) else "" for one in named}


_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear",
         "lora_modules_to_save", "peft_use_dora", "peft_use_rslora")  # fmt: skip


def _remarks(entries: Mapping[str, Any]) -> Iterator[Remark]:
    """What axolotl does with entries that do not go together."""
    written = tuple(name for name in _LORA if entries.get(name) is not None)
    four = boolean(entries.get("load_in_4bit") or False)
    adapter = str(entries.get("adapter") or "")
    # Left blank it trains all weights, as axolotl's documentation says.
    if "adapter" not in entries and written and not entries.get("plugins"):
        wanted = "qlora" if four else "lora"
        yield Remark(
            "unread", written,
            "reads no LoRA setting without adapter, and trains the model's own weights",
            "loaders/model.py: adapters are loaded for cfg.adapter",
            f"Set adapter: {wanted}.", (("adapter", wanted),),
        )  # fmt: skip
    if adapter == "qlora" and not four and not boolean(entries.get("load_in_8bit") or False):
        yield Remark(
            "refused", ("adapter",),
            "raises ValueError: Require cfg.load_in_4bit to be True for qlora",
            "utils/schemas/peft.py: validate_qlora", "Set load_in_4bit: true.",
            (("load_in_4bit", True),), safe=True,
        )  # fmt: skip
    if adapter == "qlora" and boolean(entries.get("load_in_8bit") or False):
        yield Remark(
            "refused", ("load_in_8bit", "adapter"), "raises ValueError: Can't load qlora in 8bit",
            "utils/schemas/peft.py: validate_qlora", "Set adapter: lora.", (("adapter", "lora"),),
            safe=True,
        )  # fmt: skip
    checkpointing = entries.get("gradient_checkpointing_kwargs") or {}
    reentrant = isinstance(checkpointing, Mapping) and checkpointing.get("use_reentrant") is True
    if entries.get("unfrozen_parameters") and reentrant:
        yield Remark(
            "refused", ("unfrozen_parameters", "gradient_checkpointing_kwargs"),
            "raises ValueError: `use_reentrant` must be false when used with partially frozen "
            "model",
            "utils/schemas/validation.py: check_use_reentrant_mismatch",
            "Set use_reentrant: false in gradient_checkpointing_kwargs.",
        )  # fmt: skip
    yield from remarks_on(_TOGETHER, entries)
    attention = entries.get("attn_implementation") or any(entries.get(name) for name in _ATTENTION)
    if boolean(entries.get("sample_packing") or False) and not attention:
        yield Remark(
            "packing", ("sample_packing",),
            "packs samples without an attention that keeps them apart, and says so in a warning",
            "utils/schemas/validation.py: check_sample_packing_without_attention",
            "Set attn_implementation: sdpa (or flash_attention_2 where it is installed).",
            (("attn_implementation", "sdpa"),),
        )  # fmt: skip


def _no_rows_to_evaluate(entries: Mapping[str, Any]) -> bool:
    written = entries.get("val_set_size") is not None and not more_than_zero(
        entries, "val_set_size"
    )
    asks = entries.get("eval_steps") or str(entries.get("eval_strategy") or "no") != "no"
    return bool(written and asks and not entries.get("test_datasets")
                and str(entries.get("eval_strategy")) != "no")  # fmt: skip


_IN_TRAINING = "utils/schemas/validation.py: check_evals"
_TOGETHER = (
    Together(
        ("val_set_size", "eval_steps", "eval_strategy"), _no_rows_to_evaluate,
        "raises ValueError: eval_steps and eval_strategy are not supported with val_set_size == 0",
        _IN_TRAINING, "Set val_set_size (such as 0.05) or test_datasets, or take the others out.",
    ),
    Together(
        ("val_set_size", "test_datasets"),
        lambda entries: bool(entries.get("test_datasets"))
        and more_than_zero(entries, "val_set_size"),
        "raises ValueError: non-zero val_set_size should not be used with test_datasets "
        "configuration", "utils/schemas/validation.py: check_val_w_test_datasets",
        "Take val_set_size out.", (("val_set_size", REMOVE),),
    ),
    Together(
        ("evals_per_epoch", "eval_steps"),
        lambda entries: bool(entries.get("evals_per_epoch") and entries.get("eval_steps")),
        "raises ValueError: eval_steps and evals_per_epoch are mutually exclusive and cannot be "
        "used together", _IN_TRAINING, "Take one of them out.",
    ),
    Together(
        ("saves_per_epoch", "save_steps"),
        lambda entries: bool(entries.get("saves_per_epoch") and entries.get("save_steps")),
        "raises ValueError: save_steps and saves_per_epoch are mutually exclusive and cannot be "
        "used together", "utils/schemas/validation.py: check_saves", "Take one of them out.",
    ),
    Together(
        ("merge_lora", "load_in_4bit"),
        lambda entries: str(entries.get("adapter")) == "qlora" and on(entries, "merge_lora")
        and on(entries, "load_in_4bit"),
        "raises ValueError: Can't merge qlora if loaded in 4bit",
        "utils/schemas/peft.py: validate_qlora",
        "Take merge_lora out: `axolotl merge-lora` merges after the training.",
        (("merge_lora", REMOVE),),
    ),
    Together(
        ("load_in_4bit", "load_in_8bit"),
        lambda entries: not entries.get("adapter") and not on(entries, "inference")
        and not any(entries.get(name) is not None for name in _LORA)
        and (on(entries, "load_in_4bit") or on(entries, "load_in_8bit")),
        "raises ValueError: load_in_8bit and load_in_4bit are not supported without setting an "
        "adapter for training", "utils/schemas/peft.py: validate_adapter", "Set adapter.",
    ),
    Together(
        ("adapter",),
        lambda entries: bool(entries.get("adapter")) and not entries.get("plugins")
        and entries["adapter"] not in ("lora", "qlora", "llama-adapter"),
        "raises ValueError: the adapter is not built in and was not registered by a plugin",
        "utils/schemas/peft.py: validate_adapter", "Set adapter: lora or adapter: qlora.",
    ),
    Together(
        ("lora_dropout", "lora_target_parameters"),
        lambda entries: bool(entries.get("lora_target_parameters"))
        and more_than_zero(entries, "lora_dropout"),
        "raises ValueError: lora_dropout must be 0 when lora_target_parameters is set",
        "utils/schemas/peft.py", "Set lora_dropout: 0.", (("lora_dropout", 0),),
    ),
)  # fmt: skip


#: Parts of a parameter's name with which ``utils/freeze.py`` takes it for one of an encoder.
_ENCODERS = frozenset(
    {"vision_tower", "vision_model", "vision_encoder", "embed_vision", "multi_modal_projector",
     "visual", "audio_tower", "audio_model", "embed_audio"}
)  # fmt: skip


def _freezes(entries: Mapping[str, Any]) -> dict[str, Callable[[str], bool]]:
    """``freeze_layers_except`` and ``freeze_mm_modules`` of ``utils/freeze.py``, which ``train.py``
    calls with the model that PEFT has wrapped."""
    found: dict[str, Callable[[str], bool]] = {}
    kept = entries.get("unfrozen_parameters")
    if entries.get("adapter") and kept:
        patterns = [_pattern(str(one)) for one in ([kept] if isinstance(kept, str) else kept)]
        if all(patterns):
            found["unfrozen_parameters"] = lambda name: (
                not any(pattern.match(name) for pattern in patterns if pattern)
            )
    if boolean(entries.get("freeze_mm_modules") or False):
        found["freeze_mm_modules"] = lambda name: bool(_ENCODERS.intersection(name.split(".")))
    return found


def _paths(entries: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from of_entries(entries, "lora_model_dir", "resume_from_checkpoint", "deepspeed")
    for name in ("datasets", "test_datasets", "pretraining_dataset"):
        yield from of_datasets(entries, name)


def _saved_adapter(entries: Mapping[str, Any]) -> str | None:
    """``load_lora`` of ``loaders/adapter.py``."""
    folder = entries.get("lora_model_dir")
    return folder if isinstance(folder, str) and folder.strip() else None


def _shards_eight_bits(entries: Mapping[str, Any]) -> bool:
    """``monkeypatch/fsdp2_qlora.py`` teaches FSDP 2 about the statistics of 8-bit weights."""
    options = entries.get("fsdp_config")
    version = options.get("fsdp_version") if isinstance(options, Mapping) else None
    return str(version or entries.get("fsdp_version")) == "2"


def _pattern(written: str) -> re.Pattern[str] | None:
    """A pattern of ``unfrozen_parameters``: without the range of rows at its end; a dot is a dot
    unless a plus follows. ``None`` where it is no expression."""
    name = re.sub(r"(?<=.)\[\d*(:\d*)?\]$", "", written)
    try:
        return re.compile(re.sub(r"\.(?!\+)", r"\.", name))
    except re.error:
        return None


FRAMEWORK = Framework(
    Sources(
        "axolotl",
        ("axolotl.utils.schemas.config:AxolotlInputConfig",),
        r'\bcfg\.(\w+)|(?:data|cfg|values)\.get\(\s*"(\w+)"|(?:data|cfg)\["(\w+)"\]',
        "integrations/*/args.py",
        checks=("axolotl.utils.schemas.config:AxolotlInputConfig",),
        handed_to=("transformers.training_args:TrainingArguments",),
        handed_as={"lr_scheduler": "lr_scheduler_type"},
    ),
    model="base_model",
    revision="revision_of_model",
    unknown="dropped",
    finish=_finish,
    enables_input_gradients=True,
    write=_write,
    remarks=_remarks,
    freezes=_freezes,
    paths=_paths,
    saved_adapter=_saved_adapter,
    only_uses=lambda entries: on(entries, "merge_lora"),
    merges=lambda entries: "merge_lora" if on(entries, "merge_lora") else None,
    shards_eight_bits=_shards_eight_bits,
    quantizes_experts=lambda entries: boolean(entries.get("quantize_moe_experts") or False),
    plugins=_plugins,
    commands=("axolotl",),
)

_MARKS = frozenset(
    {"adapter", "datasets", "sequence_len", "micro_batch_size", "lora_r", "lora_target_linear",
     "lora_target_modules", "sample_packing", "val_set_size", "dataset_prepared_path", "rl"}
)  # fmt: skip


def recognises(values: Mapping[str, Any]) -> bool:
    """``base_model``, which no other framework has, beside another of its names."""
    marks = _MARKS & values.keys()
    return bool("base_model" in values and marks) or len(marks - {"lora_r"}) > 3
