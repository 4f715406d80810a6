"""The keys of a recipe: one table, and everything that is asked of it.

To add a key, add one entry to ``KEYS``. From it come the check of the value, the place where the
value goes (PEFT's config, ``from_pretrained``, the training loop), the option of the command line,
the command that is proposed next, and the table in the README. A field of the installed
``LoraConfig`` that has no entry is taken as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.errors import InputError
from lora_doctor.recipe import normal_forms as form
from lora_doctor.recipe.command_line import (
    Option,
    capitals,
    parse_names,
    parse_target_modules,
    whole_where_possible,
)
from lora_doctor.text import must_be

#: What a key is an argument of: PEFT's config class, ``from_pretrained``, the
#: quantization config of it, ``get_peft_model`` itself and what is called beside it (which no
#: config of PEFT's holds), the Trainer's arguments, how rows of data become batches with labels, or
#: only the memory plan.
Part = Literal["adapter", "loading", "quantization", "wrapping", "training", "data", "planning"]


@dataclass(frozen=True)
class RecipeKey:
    """A key of the recipe, by PEFT's, transformers' or TRL's own name."""

    name: str
    part: Part
    normal_form: form.NormalForm
    option: Option | None = None
    #: Names that mean the same in a file or a mapping.
    aliases: tuple[str, ...] = ()
    #: A key that cannot be set together with this one.
    excludes: str = ""

    @property
    def spelling(self) -> str:
        """The option's spelling, such as ``--target-modules``."""
        return (self.option and self.option.spelling) or f"--{self.name.replace('_', '-')}"

    def words(self, value: Any) -> list[str]:
        """The words of a command line that set the key; empty where it has no option."""
        return self.option.words(self.spelling, value) if self.option else []


#: In the order of a recipe file that is written anew, of ``--help`` and of the README.
KEYS: tuple[RecipeKey, ...] = (
    RecipeKey("peft_type", "adapter", form.peft_type),
    RecipeKey(
        "task_type", "adapter", form.task_type,
        Option("PEFT's task type: CAUSAL_LM, SEQ_2_SEQ_LM, ... or none.", "TYPE", read=capitals),
    ),
    RecipeKey(
        "target_modules", "adapter", form.names_or_regex,
        Option("Names separated by commas, a regular expression, or all-linear.", "NAMES",
               read=parse_target_modules),
    ),
    RecipeKey(
        "exclude_modules", "adapter", form.names_or_regex,
        Option("Names separated by commas, or a regular expression.", "NAMES",
               read=parse_target_modules),
    ),
    RecipeKey(
        "target_parameters", "adapter", form.names,
        Option("Parameters (fused experts), separated by commas.", "NAMES", read=parse_names),
    ),
    RecipeKey(
        "modules_to_save", "adapter", form.names,
        Option("Names separated by commas.", "NAMES", read=parse_names),
    ),
    RecipeKey("r", "adapter", form.rank, Option("LoRA rank.", "N", int), aliases=("rank",)),
    RecipeKey(
        "lora_alpha", "adapter", form.number_from_zero,
        Option("LoRA alpha.", "X", float, read=whole_where_possible),
        aliases=("alpha",),
    ),
    RecipeKey(
        "lora_dropout", "adapter", form.probability,
        Option("LoRA dropout, 0 to 1.", "P", float),
    ),
    RecipeKey(
        "use_rslora", "adapter", form.boolean, Option("Rank-stabilised LoRA.", type=bool)
    ),
    RecipeKey("use_dora", "adapter", form.boolean, Option("DoRA.", type=bool)),
    RecipeKey("fan_in_fan_out", "adapter", form.boolean),
    RecipeKey("bias", "adapter", form.string),
    RecipeKey("rank_pattern", "adapter", form.mapping),
    RecipeKey("alpha_pattern", "adapter", form.mapping),
    RecipeKey(
        "model_class", "loading", form.string,
        Option("Auto class or model class to load with.", "NAME", spelling="--class"),
        aliases=("class",),
    ),
    RecipeKey(
        "dtype", "loading", form.dtype,
        Option("float32, float16, bfloat16 or auto.", "DTYPE"),
        aliases=("torch_dtype",),
    ),
    RecipeKey(
        "attn_implementation", "loading", form.string,
        Option("eager, sdpa, flash_attention_2, ...", "NAME"),
    ),
    RecipeKey(
        "load_in_4bit", "quantization", form.boolean,
        Option("bitsandbytes 4-bit.", type=bool),
        excludes="load_in_8bit",
    ),
    RecipeKey(
        "load_in_8bit", "quantization", form.boolean, Option("bitsandbytes 8-bit.", type=bool)
    ),
    RecipeKey(
        "dequantize", "quantization", form.boolean,
        Option("Load a quantized checkpoint in floating point.", type=bool),
    ),
    RecipeKey("bnb_4bit_quant_type", "quantization", form.string),
    RecipeKey("bnb_4bit_compute_dtype", "quantization", form.dtype),
    RecipeKey("bnb_4bit_use_double_quant", "quantization", form.boolean),
    RecipeKey("llm_int8_skip_modules", "quantization", form.names),
    RecipeKey("autocast_adapter_dtype", "wrapping", form.boolean),
    # Whether transformers' method of this name is called before training: whoever writes the loop
    # does so, or the framework. The Trainer does it itself from transformers 5 on.
    RecipeKey("enable_input_require_grads", "wrapping", form.boolean),
    RecipeKey(
        "gradient_checkpointing", "training", form.boolean,
        Option("Recompute activations in the backward pass.", type=bool),
    ),
    RecipeKey("gradient_checkpointing_kwargs", "training", form.mapping),
    # Mixed precision by the Trainer's names: autocast, for fp16 with a gradient scaler.
    RecipeKey("fp16", "training", form.boolean, excludes="bf16"),
    RecipeKey("bf16", "training", form.boolean),
    # Losses that take the weight of the output head in the place of its output.
    RecipeKey("use_liger_kernel", "training", form.boolean),
    RecipeKey("liger_kernel_config", "training", form.mapping),
    RecipeKey("cut_cross_entropy", "training", form.boolean),
    RecipeKey("learning_rate", "training", form.number_from_zero),
    RecipeKey(
        "per_device_train_batch_size", "training", form.count,
        Option("Samples per batch, for the memory plan.", "N", int, aliases=("--batch-size",),
               group="memory"),
        aliases=("batch_size",),
    ),
    RecipeKey(
        "optim", "training", form.string,
        Option("Optimizer, by the Trainer's name, for the memory plan: adamw_8bit, sgd, ...",
               "NAME", group="memory"),
    ),
    # TRL's names where it has one: how rows become token ids and labels.
    RecipeKey(
        "assistant_only_loss", "data", form.boolean,
        Option("Loss on the assistant's turns only, by the generation marks of the chat template.",
               type=bool, group="data"),
    ),
    RecipeKey(
        "completion_only_loss", "data", form.boolean,
        Option("Loss on the completion only.", type=bool, group="data"),
    ),
    RecipeKey(
        "response_template", "data", form.string,
        Option("Loss only on what follows this marker in the text.", "TEXT", group="data"),
        aliases=("response_part",),  # Unsloth
    ),
    RecipeKey(
        "data_collator", "data", form.string,
        Option("transformers' collator that makes the labels, such as "
               "DataCollatorForLanguageModeling; default: as TRL does.", "NAME", group="data"),
    ),
    RecipeKey(
        "chat_template_path", "data", form.string,
        Option("Jinja file with the chat template, instead of the tokenizer's.", "FILE",
               group="data"),
    ),
    RecipeKey(
        "eos_token", "data", form.string,
        Option("End-of-text token, instead of the tokenizer's.", "TOKEN", group="data"),
    ),
    RecipeKey(
        "pad_token", "data", form.string,
        Option("Padding token, instead of the tokenizer's.", "TOKEN",
               group="data"),
    ),
    RecipeKey(
        "packing", "data", form.boolean,
        Option("Pack several samples into one row.", type=bool, group="data"),
    ),
    RecipeKey("truncation_mode", "data", form.string),
    RecipeKey(
        "num_train_epochs", "data", form.positive_number,
        Option("Epochs, for the number of steps.", "X", float, read=whole_where_possible,
               group="data"),
    ),
    RecipeKey(
        "max_steps", "data", form.count,
        Option("Optimizer steps, instead of epochs.", "N", int, group="data"),
    ),
    RecipeKey(
        "gradient_accumulation_steps", "data", form.count,
        Option("Batches per optimizer step.", "N", int, group="data"),
    ),
    RecipeKey(
        "warmup_steps", "data", form.number_from_zero,
        Option("Warm-up steps of the learning rate.", "X", float, read=whole_where_possible,
               group="data"),
    ),
    RecipeKey(
        "warmup_ratio", "data", form.probability,
        Option("Warm-up as a share of all steps.", "P", float, group="data"),
    ),
    RecipeKey(
        "max_length", "planning", form.count,
        Option("Tokens per sample, for the memory plan and for --data.", "N", int,
               group="memory"),
        aliases=("max_seq_length",),  # TRL before 0.20
    ),
    RecipeKey(
        "memory_budget", "planning", form.memory_size,
        Option("Memory of the GPU, such as 24GB: LD704 reports a recipe that does not fit.",
               "SIZE", group="memory"),
    ),
    RecipeKey(
        "gpu", "planning", form.gpus,
        Option("GPU to train on, such as a100-80gb; may be repeated. cheapest: the first that "
               "fits.", "NAME", group="memory", several=True, read=parse_names),
    ),
    RecipeKey(
        "num_processes", "planning", form.count,
        Option("Processes, each with a GPU of its own, for the memory plan.", "N", int,
               group="memory"),
    ),
    RecipeKey(
        "sharding", "planning", form.sharding,
        Option("zero1, zero2, zero3 or fsdp: what the processes divide, for the memory plan.",
               "KIND", group="memory"),
    ),
)  # fmt: skip

BY_NAME = {key.name: key for key in KEYS}


def _names_of(*parts: Part) -> tuple[str, ...]:
    return tuple(key.name for key in KEYS if key.part in parts)


#: Names of the keys by where their values go.
ADAPTER_KEYS = _names_of("adapter")
QUANTIZATION_KEYS = _names_of("quantization")
LOADING_KEYS = _names_of("loading", "quantization")
WRAPPING_KEYS = _names_of("wrapping")
TRAINING_KEYS = _names_of("training")
DATA_KEYS = _names_of("data")
PLANNING_KEYS = _names_of("planning")
#: Keys with a number or a switch that PEFT's config or the Trainer's arguments take as they are
#: given: what an impossible one does there can be found out by handing it over.
FOUND_OUT_KEYS = frozenset(
    key.name
    for key in KEYS
    if key.part in ("adapter", "training", "data")
    and key.normal_form
    in (form.rank, form.number_from_zero, form.probability, form.positive_number, form.count,
        form.boolean)
)  # fmt: skip
#: All keys that are not for the constructor of PEFT's config.
OUTER_KEYS = (*LOADING_KEYS, *WRAPPING_KEYS, *TRAINING_KEYS, *DATA_KEYS, *PLANNING_KEYS)
#: Keys whose value is a mapping.
MAPPING_KEYS = tuple(key.name for key in KEYS if key.normal_form is form.mapping)
#: Alias to the key that it means.
ALIASES = {alias: key.name for key in KEYS for alias in key.aliases}
#: The names that files of TRL, axolotl and LLaMA-Factory have for fields of LoraConfig, each with
#: its key.
PREFIXED = {
    "lora_rank": "r",
    **{
        f"lora_{key}": key
        for key in ("r", "target_modules", "target_parameters", "modules_to_save", "task_type")
    },
}
#: Pairs of which a recipe sets one at most.
EXCLUSIVE = tuple((key.name, key.excludes) for key in KEYS if key.excludes)
#: Written as true by every ``save_pretrained``, so that a loaded adapter is frozen. PEFT's config
#: takes it as well: training begins from a config with it, and nothing learns.
INFERENCE_MODE = "inference_mode"
#: Where adapters are computed on the user's machine (``ephemeral_gpu_offload``): an object that no
#: file holds, and that changes nothing of what is trained. PEFT leaves it out of a file that it
#: reads.
RUNTIME_CONFIG = "runtime_config"
#: Fields of adapter_config.json that describe the file, not the training.
BOOKKEEPING_KEYS = frozenset(
    {"base_model_name_or_path", "revision", INFERENCE_MODE, "auto_mapping", "peft_version"}
)


def config_fields(peft_type: str) -> tuple[str, ...] | None:
    """Fields of the config class that the installed PEFT has for this kind of adapter; ``None``
    where there is none, or no PEFT."""
    from lora_doctor.static.installed.environment import adapter_config_fields

    return adapter_config_fields(peft_type)


def name_in(fields: tuple[str, ...] | None, key: str) -> str:
    """The name that a config class with these fields has for a key."""
    if fields is None or key in fields:
        return key
    return next((name for name, meant in ALIASES.items() if meant == key and name in fields), key)


def known_keys(peft_type: str = "LORA") -> frozenset[str]:
    """Every key that a recipe of this kind of adapter may have, with the fields of the installed
    PEFT's config."""
    fields = config_fields(peft_type)
    if fields is None:
        return frozenset({*BY_NAME, *BOOKKEEPING_KEYS})
    ours = (key for key in BY_NAME if peft_type == "LORA" or key in OUTER_KEYS)
    return frozenset({*ours, *BOOKKEEPING_KEYS, *fields})


def is_known_key(key: str) -> bool:
    """Whether a recipe may have this key. Without an installed PEFT its own fields are not known:
    then any name of an argument will do."""
    if key in BY_NAME or key in known_keys():
        return True
    return config_fields("LORA") is None and key.isidentifier() and not key.startswith("_")


def is_key_of(peft_type: str, key: str) -> bool:
    """Whether a recipe of this kind of adapter may have this key. A kind that the installed PEFT
    does not know is PEFT's to refuse."""
    if peft_type == "LORA" and key in BY_NAME:
        return True  # cheap: PEFT's source is read for others only
    fields = config_fields(peft_type)
    if fields is None and peft_type != "LORA":
        return True
    return name_in(fields, key) in known_keys(peft_type)


def check_value(key: str, value: Any, where: str) -> Any:
    """The value in its normal form.

    Raises:
        InputError: the value cannot be this key's; says where, which and what it must be.
    """
    known = BY_NAME.get(key)
    if known is None:
        return value
    try:
        return known.normal_form(value)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: {key} {must_be(error)}, not {_shown(value)}") from None


def _shown(value: Any) -> str:
    """The value for an error message, short whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits has no text
        return "a number with thousands of digits"
    return text if len(text) < 60 else text[:57] + "..."
