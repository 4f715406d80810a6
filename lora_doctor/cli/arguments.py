"""From the options of the command line to the arguments of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.errors import InputError


def call_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """What every call of the API takes, out of the options. Raises InputError."""
    from dataclasses import replace

    from lora_doctor.engine.case import GIB, Limits

    limits = Limits(hub_seconds=options["hub_time_limit"])
    if options["time_limit"]:
        seconds = options["time_limit"]
        limits = replace(limits, meta_seconds=seconds, tiny_seconds=seconds, full_seconds=seconds)
    if options["memory_limit"]:
        limits = replace(limits, memory=int(options["memory_limit"] * GIB))
    if options.get("output_file") is not None:
        from lora_doctor.files import check_writable

        check_writable(options["output_file"])
    return {
        "model": options["model"],
        "recipe": _recipe(options),
        "revision": options["revision"],
        "trust_remote_code": options["trust_remote_code"],
        "limits": limits,
        "device": options["device"],
        "steps": options["steps"],
        "memory": options.get("memory", False),
        "prescription": options.get("prescription"),
    }


def _recipe(options: Mapping[str, Any]) -> Any:
    from pathlib import Path

    from lora_doctor.recipe.recipe import Recipe, make_recipe, parse_target_modules

    base = Recipe()
    if options["recipe_file"]:
        from lora_doctor.recipe.files.read_write import read_recipe

        base = read_recipe(Path(options["recipe_file"]))
    elif options.get("prescription"):
        from lora_doctor.prescription.apply import checked_prescription

        base = make_recipe(
            checked_prescription(options["prescription"]).recipe,
            where=options["prescription"],
            origin="file",
        )
    given: dict[str, Any] = {}
    for key in ("target_modules", "exclude_modules"):
        if options[key] is not None:
            given[key] = parse_target_modules(options[key], f"--{key.replace('_', '-')}")
    for key in ("target_parameters", "modules_to_save"):
        if options[key] is not None:
            given[key] = [name.strip() for name in options[key].split(",") if name.strip()]
            if not given[key]:
                raise InputError(f"--{key.replace('_', '-')}: no name given; leave it out for none")
    plain = (
        "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "load_in_4bit",
        "load_in_8bit", "dtype", "attn_implementation", "gradient_checkpointing", "model_class",
        "memory_budget", "per_device_train_batch_size", "max_length", "optim",
    )  # fmt: skip
    given.update({key: options[key] for key in plain if options.get(key) is not None})
    if given.get("lora_alpha") is not None and float(given["lora_alpha"]).is_integer():
        given["lora_alpha"] = int(given["lora_alpha"])
    checked = make_recipe(given, where="options", origin="option")
    return base.override(checked.values, "option")


def rule_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Which rules are asked, out of the options."""
    return {
        "select": _codes(options["select"]),
        "ignore": _codes(options["ignore"]),
        "rules": options["rule_folders"],
    }


def _codes(text: str) -> tuple[str, ...]:
    return tuple(code.strip().upper() for code in text.split(",") if code.strip())
