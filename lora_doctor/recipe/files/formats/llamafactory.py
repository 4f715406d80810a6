"""LLaMA-Factory: the YAML or JSON of ``llamafactory-cli train``, or its options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lora_doctor.recipe.edit import REMOVE
from lora_doctor.recipe.files.framework import Framework
from lora_doctor.recipe.files.frozen_parts import left_out
from lora_doctor.recipe.files.named_paths import of_entries
from lora_doctor.recipe.files.read_as import (
    boolean,
    integer,
    joined,
    names,
    not_boolean,
    number,
    only,
    word_for,
    word_of,
)
from lora_doctor.recipe.files.remark import Remark
from lora_doctor.recipe.files.spelling import Spelling, Spellings
from lora_doctor.recipe.files.together import (
    Together,
    evaluates,
    more_than_zero,
    on,
    remarks_on,
)
from lora_doctor.recipe.files.trainer_spellings import OF_THE_TRAINER
from lora_doctor.recipe.set_up import SetUp
from lora_doctor.static.installed.framework_fields import Sources

NAME = "LLaMA-Factory"
SPECIFICITY = 20
COMPLETE = True
IGNORES_UNKNOWN = False


def _targets(value: Any) -> Any:
    found = names(value)
    return "all-linear" if found == ["all"] else found


def _written_targets(value: Any) -> str:
    return "all" if value == "all-linear" else joined(value)


_ATTENTION = {
    "auto": "", "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
}  # fmt: skip

SPELLINGS = Spellings(
    Spelling("target_modules", "lora_target", _targets, _written_targets),
    Spelling("modules_to_save", "additional_target", names, joined),
    Spelling("r", "lora_rank", integer),
    Spelling("lora_alpha", "lora_alpha", number),
    Spelling("lora_dropout", "lora_dropout", number),
    Spelling("use_rslora", "use_rslora", boolean),
    Spelling("use_dora", "use_dora", boolean),
    Spelling("load_in_4bit", "quantization_bit", only(4), lambda on: 4 if on else None),
    Spelling("load_in_8bit", "quantization_bit", only(8), lambda on: 8 if on else None),
    Spelling("bnb_4bit_quant_type", "quantization_type"),
    Spelling("bnb_4bit_use_double_quant", "double_quantization", boolean),
    Spelling("attn_implementation", "flash_attn", word_of(_ATTENTION), word_for(_ATTENTION)),
    Spelling("gradient_checkpointing", "disable_gradient_checkpointing", not_boolean, not_boolean),
    Spelling("max_length", "cutoff_len", integer),
    Spelling("packing", "packing", boolean),
    Spelling("bf16", "bf16", boolean),
    Spelling("fp16", "fp16", boolean),
    Spelling("use_liger_kernel", "enable_liger_kernel", boolean),
    *OF_THE_TRAINER,
)


def _without_fused_loss(values: dict[str, Any], entries: Mapping[str, Any]) -> None:
    """Other stages than these need logits: Liger's other kernels are used, not its fused loss."""
    if str(entries.get("stage", "sft")) not in ("pt", "sft"):
        values.pop("use_liger_kernel", None)


def _finish(values: dict[str, Any], entries: Mapping[str, Any]) -> None:
    """What ``hparams/`` and ``model/`` of LLaMA-Factory make of several arguments."""
    values["task_type"] = "CAUSAL_LM"
    _without_fused_loss(values, entries)
    if not entries.get("lora_alpha") and "r" in values:
        values["lora_alpha"] = 2 * values["r"]
    if str(entries.get("quantization_method", "bnb")).lower() not in ("bnb", "bitsandbytes"):
        values.pop("load_in_4bit", None)
        values.pop("load_in_8bit", None)
    _without_quantization(values)
    _of_adapter(values, entries)
    if values.get("bf16") or boolean(entries.get("pure_bf16") or False):
        values["dtype"] = "bfloat16"
    elif values.get("fp16"):
        values["dtype"] = "float16"
    if values.get("dtype") and values.get("load_in_4bit"):
        values["bnb_4bit_compute_dtype"] = values["dtype"]
    if values.get("gradient_checkpointing"):
        reentrant = boolean(entries.get("use_reentrant_gc", True))
        values["gradient_checkpointing_kwargs"] = {"use_reentrant": reentrant}
    if boolean(entries.get("neat_packing") or False):
        values["packing"] = True
        if isinstance(values.get("max_length"), int):
            values["max_length"] -= 1  # hparams/data_args.py


def _of_adapter(values: dict[str, Any], entries: Mapping[str, Any]) -> None:
    """Where adapters are left out, and how they begin (``model/adapter.py``)."""
    without = _left_out(entries)
    if without:
        values["exclude_modules"] = without
    if entries.get("pissa_init") and boolean(entries["pissa_init"]):
        steps = entries.get("pissa_iter", 16)
        values["init_lora_weights"] = "pissa" if steps == -1 else f"pissa_niter_{steps}"


def _left_out(entries: Mapping[str, Any]) -> str | None:
    """``get_forbidden_modules`` of ``model/model_utils/visual.py``: a regular expression for the
    modules that get no adapter."""
    if str(entries.get("finetuning_type", "lora")) != "lora":
        return None
    return left_out(
        encoders=on(entries, "freeze_vision_tower", True),
        projectors=on(entries, "freeze_multi_modal_projector", True),
        language=on(entries, "freeze_language_model"),
    )


def _without_quantization(values: dict[str, Any]) -> None:
    if not values.get("load_in_4bit"):
        for key in ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant"):
            values.pop(key, None)


_LORA = ("lora_target", "lora_rank", "lora_alpha", "lora_dropout", "use_rslora", "use_dora",
         "additional_target", "pissa_init")  # fmt: skip
_OF_BITS = ("quantization_type", "double_quantization", "quantization_method")


def _remarks(entries: Mapping[str, Any]) -> Iterator[Remark]:
    """What LLaMA-Factory does with entries that do not go together."""
    kind = str(entries.get("finetuning_type", "lora"))
    written = tuple(name for name in _LORA if name in entries)
    if kind in ("full", "freeze") and written:
        yield Remark(
            "unread", written,
            f"reads no LoRA setting with finetuning_type: {kind}, and trains the model's own "
            "weights", "model/adapter.py: init_adapter",
            "Set finetuning_type: lora, or take the settings out.",
            (("finetuning_type", "lora"),),
        )  # fmt: skip
    if not entries.get("quantization_bit") and (found := _written(entries, _OF_BITS)):
        yield Remark(
            "unread", found, "quantizes nothing without quantization_bit",
            "model/model_utils/quantization.py: configure_quantization",
            "Set quantization_bit: 4.", (("quantization_bit", 4),),
        )  # fmt: skip
    packed = boolean(entries.get("packing") or False)
    if packed and not boolean(entries.get("neat_packing") or False) and _stage(entries) == "sft":
        yield Remark(
            "packing", ("packing",),
            "puts several samples into a row in which each attends to those before it",
            "hparams/data_args.py: neat_packing is what keeps them apart",
            "Set neat_packing: true.", (("neat_packing", True),),
        )  # fmt: skip
    yield from _of_bits(entries)
    yield from remarks_on(_TOGETHER, entries)


def _trains_nothing(entries: Mapping[str, Any]) -> bool:
    """A set-up for training, by what it sets, that says nothing of what it is to do."""
    of_training = {"dataset", "learning_rate", "num_train_epochs", "per_device_train_batch_size"}
    to_do = ("do_train", "do_eval", "do_predict", "predict_with_generate", "export_dir")
    return len(of_training & entries.keys()) > 2 and not any(on(entries, name) for name in to_do)


_TOGETHER = (
    Together(
        ("resize_vocab", "quantization_bit"),
        lambda entries: bool(entries.get("quantization_bit")) and on(entries, "resize_vocab"),
        "raises ValueError: Cannot resize embedding layers of a quantized model",
        "hparams/parser.py: _verify_model_args", "Take resize_vocab or quantization_bit out.",
    ),
    Together(
        ("pissa_init", "quantization_bit"),
        lambda entries: bool(entries.get("quantization_bit")) and on(entries, "pissa_init"),
        "raises ValueError: Please use scripts/pissa_init.py to initialize PiSSA for a quantized "
        "model", "hparams/parser.py: _verify_model_args",
        "Take pissa_init or quantization_bit out.",
    ),
    Together(
        ("quantization_bit", "finetuning_type"),
        lambda entries: bool(entries.get("quantization_bit"))
        and str(entries.get("finetuning_type", "lora")) in ("full", "freeze"),
        "raises ValueError: Quantization is only compatible with the LoRA or OFT method",
        "hparams/parser.py: _verify_model_args", "Take quantization_bit out.",
    ),
    Together(
        ("quantization_bit", "adapter_name_or_path", "export_dir"),
        lambda entries: all(
            entries.get(name) for name in ("quantization_bit", "adapter_name_or_path", "export_dir")
        ),
        "raises ValueError: Cannot merge adapters to a quantized model",
        "train/tuner.py: export_model",
        "Take quantization_bit out: adapters are merged into the weights in full precision.",
        (("quantization_bit", REMOVE),),
    ),
    Together(
        ("export_quantization_bit", "adapter_name_or_path", "export_dir"),
        lambda entries: all(
            entries.get(name)
            for name in ("export_quantization_bit", "adapter_name_or_path", "export_dir")
        ),
        "raises ValueError: Please merge adapters before quantizing the model",
        "train/tuner.py: export_model",
        "Export twice: merge without export_quantization_bit, then quantize what that wrote, "
        "without adapter_name_or_path.",
    ),
    Together(
        ("eval_strategy", "do_eval"),
        lambda entries: evaluates(entries) and not entries.get("eval_dataset")
        and not more_than_zero(entries, "val_size"),
        "raises ValueError: Please make sure eval_dataset be provided or val_size >1e-6",
        "hparams/parser.py: get_train_args", "Set val_size (such as 0.05) or eval_dataset.",
    ),
    Together(
        ("val_size", "eval_dataset"),
        lambda entries: bool(entries.get("eval_dataset")) and more_than_zero(entries, "val_size"),
        "raises ValueError: Cannot specify `val_size` if `eval_dataset` is not None",
        "hparams/data_args.py: __post_init__", "Take val_size out.", (("val_size", REMOVE),),
    ),
    Together(
        ("stage",),
        lambda entries: _stage(entries) == "ppo" and not entries.get("reward_model"),
        "raises ValueError: `reward_model` is necessary for PPO training",
        "hparams/finetuning_args.py: __post_init__", "Set reward_model.",
    ),
    Together(
        ("neat_packing", "stage"),
        lambda entries: _stage(entries) != "sft" and on(entries, "neat_packing"),
        "raises ValueError: `neat_packing` cannot be set as True except SFT",
        "hparams/parser.py: get_train_args", "Take neat_packing out.",
        (("neat_packing", REMOVE),),
    ),
    Together(
        ("do_train",),
        lambda entries: on(entries, "do_train") and not entries.get("dataset"),
        "raises ValueError: Please specify dataset for training",
        "hparams/parser.py: get_train_args", "Set dataset.",
    ),
    Together(
        ("streaming",),
        lambda entries: on(entries, "streaming") and not more_than_zero(entries, "max_steps"),
        "raises ValueError: Please specify `max_steps` in streaming mode",
        "hparams/parser.py: get_train_args", "Set max_steps.",
    ),
    Together(
        ("learning_rate", "dataset"), _trains_nothing,
        "trains nothing without do_train: true and comes to its end",
        "train/sft/workflow.py: run_sft", "Set do_train: true.", (("do_train", True),),
        kind="unread",
    ),
)  # fmt: skip


def _of_bits(entries: Mapping[str, Any]) -> Iterator[Remark]:
    bits = str(entries.get("quantization_bit") or "")
    by_bnb = str(entries.get("quantization_method", "bnb")).lower() in ("bnb", "bitsandbytes")
    if bits and by_bnb and bits not in ("4", "8"):
        yield Remark(
            "refused", ("quantization_bit",),
            "raises ValueError: Bitsandbytes only accepts 4-bit or 8-bit quantization",
            "model/model_utils/quantization.py: configure_quantization",
            "Set quantization_bit: 4 or 8.",
        )  # fmt: skip


def _written(entries: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name in entries)


def _paths(entries: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("adapter_name_or_path", "ref_model_adapters", "reward_model_adapters"):
        for path in str(entries.get(name) or "").split(","):
            yield name, path.strip()
    yield from of_entries(
        entries, "resume_from_checkpoint", "deepspeed", "media_dir", "dataset_dir"
    )


def _image_pixels(set_up: SetUp) -> Iterator[tuple[str, int]]:
    """``data/mm_plugin.py`` scales images down before the processor sees them."""
    fields = FRAMEWORK.fields()
    default = fields.defaults.get("image_max_pixels") if fields else None
    pixels = number(set_up.entries.get("image_max_pixels", default))
    if isinstance(pixels, (int, float)):
        yield "image_max_pixels", int(pixels)


def _registry(entries: Mapping[str, Any]) -> tuple[str, str] | None:
    """``data/parser.py``: the names of ``dataset`` are looked up in ``dataset_info.json``."""
    folder = entries.get("dataset_dir", "data")
    on_a_hub = not isinstance(folder, str) or folder == "ONLINE" or folder.startswith("REMOTE:")
    return None if on_a_hub else ("dataset", f"{folder}/dataset_info.json")


def _saved_adapter(entries: Mapping[str, Any]) -> str | None:
    """``init_adapter`` of ``model/adapter.py``: the last of those named, unless a new one is put on
    when they are merged."""
    if on(entries, "do_train") and on(entries, "create_new_adapter"):
        return None
    named = [one.strip() for one in str(entries.get("adapter_name_or_path") or "").split(",")]
    folder = entries.get("adapter_folder")
    last = next((one for one in reversed(named) if one), None)
    return f"{last}/{folder}" if last and folder else last


def _only_uses(entries: Mapping[str, Any]) -> bool:
    """``export`` and ``chat``; ``train`` has to be told what to do."""
    return not on(entries, "do_train") and (
        bool(entries.get("export_dir")) or "infer_backend" in entries
    )


def _merges(entries: Mapping[str, Any]) -> str | None:
    merged = entries.get("adapter_name_or_path") and entries.get("export_dir")
    return "export_dir" if merged and not on(entries, "do_train") else None


def _stage(entries: Mapping[str, Any]) -> str:
    return str(entries.get("stage", "sft"))


FRAMEWORK = Framework(
    Sources(
        "llamafactory",
        ("llamafactory.hparams.model_args:ModelArguments",
         "llamafactory.hparams.data_args:DataArguments",
         "llamafactory.hparams.training_args:TrainingArguments",
         "llamafactory.hparams.finetuning_args:FinetuningArguments",
         "llamafactory.hparams.generating_args:GeneratingArguments",
         "transformers.training_args_seq2seq:Seq2SeqTrainingArguments"),
        registered={"template": ("data/template.py", r'\bname="([^"]+)"')},
        checks=("llamafactory.hparams.parser:_verify_model_args",
                "llamafactory.hparams.parser:get_train_args",
                "llamafactory.hparams.model_args:ModelArguments",
                "llamafactory.hparams.data_args:DataArguments",
                "llamafactory.hparams.finetuning_args:FinetuningArguments"),
    ),
    model="model_name_or_path",
    revision="model_revision",
    unknown="refused",
    keeps_texts=True,
    # Of releases and of transformers that other files were written for.
    also=frozenset({"overwrite_output_dir", "hub_model_id"}),
    finish=_finish,
    enables_input_gradients=True,
    remarks=_remarks,
    paths=_paths,
    saved_adapter=_saved_adapter,
    only_uses=_only_uses,
    merges=_merges,
    refuses_quantized="ValueError: Cannot merge adapters to a quantized model "
    "(train/tuner.py: export_model)",
    registry=_registry,
    image_pixels=_image_pixels,
    commands=("llamafactory-cli", "lmf"),
)  # fmt: skip

#: Entries that no other framework has.
_MARKS = frozenset(
    {"finetuning_type", "lora_target", "stage", "template", "cutoff_len", "dataset_dir",
     "quantization_bit", "additional_target"}
)  # fmt: skip


def recognises(values: Mapping[str, Any]) -> bool:
    """One of its own names, beside a model or another of them."""
    marks = _MARKS & values.keys()
    return len(marks) > 1 or bool(marks and "model_name_or_path" in values)
