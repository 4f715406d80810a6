"""ms-swift: the options of ``swift sft``, or its YAML or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_doctor.recipe.edit import REMOVE
from lora_doctor.recipe.files.framework import Framework
from lora_doctor.recipe.files.frozen_parts import left_out
from lora_doctor.recipe.files.named_paths import listed, of_entries
from lora_doctor.recipe.files.read_as import boolean, integer, names, number, only, text
from lora_doctor.recipe.files.remark import Remark
from lora_doctor.recipe.files.spelling import Spelling, Spellings
from lora_doctor.recipe.files.together import Together, evaluates, more_than_zero, on, remarks_on
from lora_doctor.recipe.files.trainer_spellings import OF_THE_TRAINER
from lora_doctor.recipe.set_up import SetUp
from lora_doctor.static.installed.framework_fields import Sources
from lora_doctor.static.named_file import named_file

NAME = "ms-swift"
SPECIFICITY = 20
COMPLETE = True
IGNORES_UNKNOWN = False


def _listed(value: Any) -> Any:
    return names([value] if isinstance(value, str) else value)


def _targets(value: Any) -> Any:
    found = _listed(value)  # with a comma in it, it is one name
    return "all-linear" if found and set(found) & {"all-linear", "ALL", "all"} else found


def _dtype(value: Any) -> Any:
    return None if str(value).upper() == "AUTO" else value


def _attention(value: Any) -> Any:
    """``AttnImpl`` of ``model/utils.py``: ``flash_attn`` is transformers' second."""
    return "flash_attention_2" if value == "flash_attn" else text(value)


SPELLINGS = Spellings(
    Spelling("target_modules", "target_modules", _targets),
    Spelling("target_modules", "target_regex", text),
    Spelling("target_parameters", "target_parameters", _listed),
    Spelling("modules_to_save", "modules_to_save", _listed),
    Spelling("r", "lora_rank", integer),
    Spelling("lora_alpha", "lora_alpha", number),
    Spelling("lora_dropout", "lora_dropout", number),
    Spelling("bias", "lora_bias"),
    Spelling("use_rslora", "use_rslora", boolean),
    Spelling("use_dora", "use_dora", boolean),
    Spelling("load_in_4bit", "quant_bits", only(4), lambda on: 4 if on else None),
    Spelling("load_in_8bit", "quant_bits", only(8), lambda on: 8 if on else None),
    Spelling("bnb_4bit_quant_type", "bnb_4bit_quant_type"),
    Spelling("bnb_4bit_use_double_quant", "bnb_4bit_use_double_quant", boolean),
    Spelling("bnb_4bit_compute_dtype", "bnb_4bit_compute_dtype", _dtype),
    Spelling("dtype", "torch_dtype", _dtype),
    Spelling("attn_implementation", "attn_impl", _attention),
    Spelling("gradient_checkpointing", "gradient_checkpointing", boolean),
    Spelling("gradient_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
    Spelling("bf16", "bf16", boolean),
    Spelling("fp16", "fp16", boolean),
    Spelling("max_length", "max_length", integer),
    Spelling("packing", "packing", boolean),
    *OF_THE_TRAINER,
)

_TASKS = {"causal_lm": "CAUSAL_LM", "seq_cls": "SEQ_CLS", "embedding": None, "reranker": "SEQ_CLS"}


def _finish(values: dict[str, Any], entries: Mapping[str, Any]) -> None:
    """What ``arguments/`` of ms-swift makes of several arguments."""
    task = _TASKS.get(str(entries.get("task_type") or "causal_lm"), "CAUSAL_LM")
    values["task_type"] = task
    if entries.get("target_regex"):
        values["target_modules"] = entries["target_regex"]
    without = _left_out(entries)
    if without and values.get("target_modules") == "all-linear":
        values["exclude_modules"] = without
    init = str(entries.get("init_weights") or "true").lower()
    if init not in ("true", "lora-ga"):
        values["init_lora_weights"] = False if init == "false" else init
    if str(entries.get("quant_method") or "").lower() != "bnb":
        values.pop("load_in_4bit", None)
        values.pop("load_in_8bit", None)
    if not values.get("load_in_4bit"):
        for key in ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"):
            values.pop(key, None)
    if "bf16" not in values and "fp16" not in values:  # by the dtype that is loaded
        precision = {"bfloat16": "bf16", "float16": "fp16"}.get(str(values.get("dtype")))
        if precision:
            values[precision] = True


def _left_out(entries: Mapping[str, Any]) -> str | None:
    """``get_multimodal_target_regex``: the parts that ``all-linear`` leaves without adapters."""
    return left_out(
        encoders=on(entries, "freeze_vit", True),
        projectors=on(entries, "freeze_aligner", True),
        language=on(entries, "freeze_llm"),
    )


def _write(key: str, value: Any, entries: Mapping[str, Any]) -> dict[str, Any] | None:
    """``target_regex`` wins over ``target_modules``, and bits alone quantize nothing."""
    if value is REMOVE:
        return None
    if key == "target_modules":
        if isinstance(value, str) and value != "all-linear":
            return {"target_regex": value}
        taken = {"target_regex": REMOVE} if "target_regex" in entries else {}
        return {**taken, "target_modules": value}
    if key in ("load_in_4bit", "load_in_8bit") and value:
        return {"quant_method": "bnb", "quant_bits": 4 if "4" in key else 8}
    return None


_LORA = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules", "target_regex",
         "modules_to_save", "use_rslora", "use_dora")  # fmt: skip
#: Entries of a training; ``swift export`` reads a stream as it likes.
_OF_TRAINING = ("num_train_epochs", "learning_rate", "per_device_train_batch_size")
#: Where rows to evaluate come from.
_EVALUATED = ("val_dataset", "cached_val_dataset", "eval_dataset")
_TOGETHER = (
    Together(
        ("eval_strategy",),
        lambda entries: evaluates(entries) and not any(entries.get(one) for one in _EVALUATED)
        and not more_than_zero(entries, "split_dataset_ratio"),
        "evaluates nothing without val_dataset or split_dataset_ratio: it sets eval_strategy to no",
        "arguments/sft_args.py: __post_init__", "Set split_dataset_ratio (such as 0.01).",
        (("split_dataset_ratio", 0.01),), kind="unread",
    ),
    Together(
        ("quant_bits", "quant_method"),
        lambda entries: str(entries.get("quant_method")).lower() == "bnb"
        and bool(entries.get("quant_bits")) and str(entries["quant_bits"]) not in ("4", "8"),
        "raises ValueError: bnb not support quant_bits",
        "arguments/base_args/quant_args.py: get_quantization_config", "Set quant_bits 4 or 8.",
    ),
    Together(
        ("streaming",),
        lambda entries: on(entries, "streaming") and any(one in entries for one in _OF_TRAINING)
        and not more_than_zero(entries, "max_steps"),
        "trains on a stream of unknown length, and the Trainer raises ValueError: max_steps has "
        "to be specified",
        "arguments/base_args/data_args.py: streaming", "Set max_steps.",
    ),
)  # fmt: skip
#: The arguments of a training, beside what it saved.
_ARGUMENTS = "args.json"
_FLASH = ("flash_attn", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def _remarks(entries: Mapping[str, Any]) -> Iterator[Remark]:
    """What ms-swift does with entries that do not go together."""
    written = tuple(name for name in _LORA if name in entries)
    if entries.get("tuner_type") == "full" and written:
        yield Remark(
            "unread", written,
            "reads no LoRA setting with tuner_type full, and trains the model's own weights",
            "pipelines/train/tuner.py", "Set tuner_type lora, or take the settings out.",
            (("tuner_type", "lora"),),
        )  # fmt: skip
    if entries.get("target_regex") and "target_modules" in entries:
        yield Remark(
            "unread", ("target_modules",), "does not read target_modules beside target_regex",
            "arguments/tuner_args.py: __post_init__", "Take target_modules out.",
            (("target_modules", REMOVE),), safe=True,
        )  # fmt: skip
    if entries.get("quant_bits") and not entries.get("quant_method"):
        yield Remark(
            "unread", ("quant_bits",), "quantizes nothing without quant_method",
            "arguments/base_args/quant_args.py: get_quantization_config",
            "Set quant_method bnb.", (("quant_method", "bnb"),),
        )  # fmt: skip
    if entries.get("quant_method") and not entries.get("quant_bits"):
        yield Remark(
            "refused", ("quant_method",), "raises ValueError: Please set the quant_bits",
            "arguments/base_args/quant_args.py: get_quantization_config", "Set quant_bits 4.",
            (("quant_bits", 4),), safe=True,
        )  # fmt: skip
    yield from remarks_on(_TOGETHER, entries)
    packed = [name for name in ("packing", "padding_free") if boolean(entries.get(name) or False)]
    if packed and str(entries.get("attn_impl")) not in _FLASH:
        yield Remark(
            "refused", (packed[0], *(name for name in ("attn_impl",) if name in entries)),
            f"raises ValueError: The \"{packed[0]}\" feature requires a flash attention",
            "arguments/sft_args.py: _check_padding_free",
            "Set attn_impl flash_attn (flash-attn has to be installed), or turn it off.",
        )  # fmt: skip


def _image_pixels(set_up: SetUp) -> Iterator[tuple[str, int]]:
    written = {"MAX_PIXELS": set_up.environment.get("MAX_PIXELS"),
               "max_pixels": set_up.entries.get("max_pixels")}  # fmt: skip
    for name, value in written.items():
        if str(value).isdecimal():
            yield name, int(str(value))


def _paths(entries: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from of_entries(entries, "adapters", "ref_adapters", "resume_from_checkpoint",
                          "external_plugins")  # fmt: skip
    if str(entries.get("deepspeed")).endswith(".json"):
        yield from of_entries(entries, "deepspeed")
    for name, path in of_entries(entries, "dataset", "val_dataset"):
        yield name, path.partition("#")[0]  # PATH#ROWS


def _saved_adapter(entries: Mapping[str, Any]) -> str | None:
    """The only one of ``adapters``; several are loaded beside each other."""
    named = listed(entries.get("adapters"))
    return named[0] if len(named) == 1 else None


def _saved_model(entries: Mapping[str, Any], folders: Iterable[Path]) -> tuple[Path, str] | None:
    """What ``load_args_from_ckpt`` of ``arguments/base_args`` reads: the arguments of the training,
    saved beside the first adapter that has them. Only where nothing is trained."""
    if not on(entries, "load_args", on(entries, "merge_lora")):
        return None
    places = tuple(folders)
    named = (str(Path(name) / _ARGUMENTS) for name in listed(entries.get("adapters")))
    file = next(filter(None, (named_file(name, places) for name in named)), None)
    try:
        saved = json.loads(file.read_text("utf-8")) if file is not None else None
    except (OSError, ValueError):
        return None
    model = saved.get("model") if isinstance(saved, dict) else None
    return (file, model) if file is not None and isinstance(model, str) and model.strip() else None


def _resumes(entries: Mapping[str, Any]) -> Any:
    """``trainers/mixin.py`` reads no state for the weights alone, if no rows are to be skipped."""
    weights_alone = on(entries, "resume_only_model") and on(entries, "ignore_data_skip")
    return None if weights_alone else entries.get("resume_from_checkpoint")


FRAMEWORK = Framework(
    Sources(
        "ms-swift",
        ("swift.arguments.sft_args:SftArguments", "swift.arguments.rlhf_args:RLHFArguments",
         "swift.arguments.pretrain_args:PretrainArguments",
         "swift.arguments.export_args:ExportArguments"),
        registered={"template": ("template/constant.py", r"=\s*'([\w.-]+)'"),
                    "model_type": ("model/constant.py", r"=\s*'([\w.-]+)'")},
        trainers=("swift.rlhf_trainers", "trl.trainer", "trl.experimental"),
        handed_to=("trl.trainer.kto_config:KTOConfig",),
    ),
    model="model",
    revision="model_revision",
    unknown="refused",
    also=frozenset({"ENV", "config"}),
    renamed={"train_type": "tuner_type", "sft_type": "tuner_type"},
    finish=_finish,
    enables_input_gradients=True,
    write=_write,
    remarks=_remarks,
    paths=_paths,
    saved_adapter=_saved_adapter,
    saved_model=_saved_model,
    only_uses=lambda entries: on(entries, "merge_lora"),
    resumes=_resumes,
    merges=lambda entries: "merge_lora" if on(entries, "merge_lora") else None,
    image_pixels=_image_pixels,
    extended_by=("external_plugins", "custom_register_path"),
    commands=("swift",),
)  # fmt: skip

_MARKS = frozenset(
    {"tuner_type", "train_type", "sft_type", "target_regex", "quant_method", "attn_impl",
     "lora_rank", "freeze_vit", "freeze_llm", "split_dataset_ratio", "lorap_lr_ratio"}
)  # fmt: skip


def recognises(values: Mapping[str, Any]) -> bool:
    """``model`` as a name, beside one of its own."""
    return isinstance(values.get("model"), str) and bool(_MARKS & values.keys())
