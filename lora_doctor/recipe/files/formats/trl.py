"""TRL: the YAML of ``trl sft --config``, or the options of its scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_doctor.recipe.edit import REMOVE
from lora_doctor.recipe.files.framework import Framework
from lora_doctor.recipe.files.named_paths import of_datasets, of_entries
from lora_doctor.recipe.files.read_as import boolean, integer, names, number, positive, text
from lora_doctor.recipe.files.remark import Remark
from lora_doctor.recipe.files.spelling import Spelling, Spellings
from lora_doctor.recipe.files.together import Together, remarks_on
from lora_doctor.recipe.files.trainer_spellings import OF_THE_TRAINER
from lora_doctor.static.installed.framework_fields import Sources

NAME = "TRL"
SPECIFICITY = 15
COMPLETE = True
IGNORES_UNKNOWN = False


def _targets(value: Any) -> Any:
    """``ModelConfig`` unpacks a list of one: PEFT then takes it for a regular expression."""
    found = value if isinstance(value, str) else names(value)
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    one = _ONE_NAME.fullmatch(found) if isinstance(found, str) else None
    return [one[1]] if one else found


def _written_targets(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:
        return rf".*\.{value[0]}"
    return value


#: How a single name is written, of which a list would be taken for an expression.
_ONE_NAME = re.compile(r"\.\*\\\.(\w+)")


def _listed(value: Any) -> Any:
    return names([value] if isinstance(value, str) else value)


SPELLINGS = Spellings(
    Spelling("target_modules", "lora_target_modules", _targets, _written_targets),
    Spelling("target_parameters", "lora_target_parameters", _listed),
    Spelling("modules_to_save", "lora_modules_to_save", _listed),
    Spelling("task_type", "lora_task_type"),
    Spelling("r", "lora_r", integer),
    Spelling("lora_alpha", "lora_alpha", number),
    Spelling("lora_dropout", "lora_dropout", number),
    Spelling("use_rslora", "use_rslora", boolean),
    Spelling("use_dora", "use_dora", boolean),
    Spelling("load_in_4bit", "load_in_4bit", boolean),
    Spelling("load_in_8bit", "load_in_8bit", boolean),
    Spelling("bnb_4bit_quant_type", "bnb_4bit_quant_type"),
    Spelling("bnb_4bit_use_double_quant", "use_bnb_nested_quant", boolean),
    Spelling("dtype", "dtype"),
    Spelling("dtype", "torch_dtype"),
    Spelling("attn_implementation", "attn_implementation", text),
    Spelling("gradient_checkpointing", "gradient_checkpointing", boolean),
    Spelling("gradient_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
    Spelling("bf16", "bf16", boolean),
    Spelling("fp16", "fp16", boolean),
    Spelling("max_length", "max_length", positive),
    Spelling("max_length", "max_seq_length", positive),
    Spelling("packing", "packing", boolean),
    Spelling("assistant_only_loss", "assistant_only_loss", boolean),
    Spelling("completion_only_loss", "completion_only_loss", boolean),
    Spelling("eos_token", "eos_token"),
    Spelling("pad_token", "pad_token"),
    Spelling("chat_template_path", "chat_template_path"),
    *OF_THE_TRAINER,
)


def _finish(values: dict[str, Any], entries: Mapping[str, Any]) -> None:
    """What ``TrainingArguments`` and ``get_quantization_config`` of TRL make of the entries."""
    if "bf16" not in values:  # TRL's own default
        values["bf16"] = not values.get("fp16", False)
    if values.get("load_in_4bit"):
        values["bnb_4bit_compute_dtype"] = values.get("dtype") or "float32"
        if values["bnb_4bit_compute_dtype"] == "auto":
            del values["bnb_4bit_compute_dtype"]
    else:
        values.pop("bnb_4bit_quant_type", None)
        values.pop("bnb_4bit_use_double_quant", None)


_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save",
         "lora_target_parameters", "lora_task_type", "use_rslora", "use_dora")  # fmt: skip
_OF_BITS = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")


def _remarks(entries: Mapping[str, Any]) -> Iterator[Remark]:
    """What TRL's scripts do with entries that do not go together."""
    written = tuple(name for name in (*_LORA, "load_in_4bit", "load_in_8bit") if name in entries)
    if written and not boolean(entries.get("use_peft") or False):
        yield Remark(
            "unread", written,
            "reads no LoRA setting without use_peft: true, and trains the model's own weights",
            "trainer/utils.py: get_peft_config returns None",
            "Set use_peft: true.", (("use_peft", True),),
        )  # fmt: skip
    of_bits = tuple(name for name in _OF_BITS if name in entries)
    if of_bits and not boolean(entries.get("load_in_4bit") or False):
        yield Remark(
            "unread", of_bits, "quantizes nothing without load_in_4bit: true",
            "trainer/utils.py: get_quantization_config",
            "Set load_in_4bit: true.", (("load_in_4bit", True),),
        )  # fmt: skip
    yield from remarks_on(_TOGETHER, entries)


_TOGETHER = (
    Together(
        ("dataset_name",),
        lambda entries: bool(entries.get("datasets") and entries.get("dataset_name")),
        "does not read dataset_name beside datasets, and says so in a warning",
        "scripts/sft.py: main", "Take dataset_name out.", (("dataset_name", REMOVE),),
        kind="unread",
    ),
)  # fmt: skip


def _paths(entries: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from of_entries(entries, "chat_template_path", "resume_from_checkpoint", "deepspeed",
                          "dataset_name")  # fmt: skip
    yield from of_datasets(entries, "datasets")


FRAMEWORK = Framework(
    Sources(
        "trl",
        ("trl.trainer.sft_config:SFTConfig", "trl.trainer.model_config:ModelConfig",
         "trl.scripts.utils:ScriptArguments", "trl.scripts.utils:DatasetMixtureConfig",
         "transformers.training_args:TrainingArguments", "trl.trainer.dpo_config:DPOConfig",
         "trl.trainer.kto_config:KTOConfig", "trl.trainer.grpo_config:GRPOConfig",
         "trl.trainer.rloo_config:RLOOConfig", "trl.trainer.reward_config:RewardConfig",
         "trl.scripts.grpo:GRPOScriptArguments", "trl.scripts.rloo:RLOOScriptArguments"),
        trainers=("trl.trainer",),
        handed_to=("trl.trainer.sft_config:SFTConfig", "trl.trainer.kto_config:KTOConfig"),
    ),
    model="model_name_or_path",
    revision="model_revision",
    unknown="dropped",
    also=frozenset({"env", "config"}),
    renamed={"max_seq_length": "max_length", "max_seq_len": "max_length"},
    finish=_finish,
    enables_input_gradients=True,
    remarks=_remarks,
    paths=_paths,
    commands=("trl",),
)  # fmt: skip

_MARKS = frozenset(
    {"use_peft", "lora_r", "lora_target_modules", "dataset_name", "datasets", "dataset_mixer",
     "model_revision", "use_bnb_nested_quant", "lora_task_type", "trl_project_name"}
)  # fmt: skip


def recognises(values: Mapping[str, Any]) -> bool:
    """A model by transformers' usual name, beside one of TRL's own."""
    return "model_name_or_path" in values and bool(_MARKS & values.keys())
