"""Entries of transformers' ``TrainingArguments`` that frameworks take under their own names."""

from __future__ import annotations

from lora_doctor.recipe.files.read_as import boolean, integer, number, positive
from lora_doctor.recipe.files.spelling import Spelling

OF_THE_TRAINER = (
    Spelling("learning_rate", "learning_rate", number),
    Spelling("per_device_train_batch_size", "per_device_train_batch_size", integer),
    Spelling("gradient_accumulation_steps", "gradient_accumulation_steps", integer),
    Spelling("num_train_epochs", "num_train_epochs", number),
    Spelling("max_steps", "max_steps", positive),
    Spelling("warmup_ratio", "warmup_ratio", number),
    Spelling("warmup_steps", "warmup_steps", number),
    Spelling("optim", "optim"),
    Spelling("use_liger_kernel", "use_liger_kernel", boolean),
    Spelling("liger_kernel_config", "liger_kernel_config"),
)
