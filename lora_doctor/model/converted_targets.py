"""Target modules that the installed PEFT itself turns into parameters, as for fused experts."""

from __future__ import annotations

import importlib
from typing import Any

from lora_doctor.results.injection import Converted


def converted_targets(wished: dict[str, Any], config: Any, model: Any) -> tuple[Converted, ...]:
    """What this PEFT turned from target modules into parameters."""
    before = set(wished["target_parameters"] or ())
    added = sorted(set(getattr(config, "target_parameters", None) or ()) - before)
    targets = wished["target_modules"]
    if not added or not targets:
        return ()
    left = config.target_modules
    if isinstance(targets, str):
        return tuple(Converted(targets, (name,)) for name in added)
    gone = [entry for entry in targets if isinstance(left, (set, list)) and entry not in left]
    alone: dict[str, str] = {}
    for entry in gone:
        parameter = _converts_alone(entry, model)
        if parameter in added:
            alone[entry] = str(parameter)
    rest = tuple(name for name in added if name not in alone.values())
    return tuple(
        Converted(entry, (alone[entry],) if entry in alone else rest or tuple(added))
        for entry in gone
    )


def _converts_alone(entry: str, model: Any) -> str | None:
    """What PEFT makes of one entry; several that are fused into one parameter it refuses alone."""
    import peft

    try:
        module = importlib.import_module("peft.utils.transformers_weight_conversion")
    except ImportError:  # this PEFT converts nothing
        return None
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    question = peft.LoraConfig(target_modules=[entry])
    try:
        module.convert_peft_config_for_transformers(
            question, model=base, conversions=module.get_model_conversion_mapping(base)
        )
    except ValueError:
        return None
    names = list(question.target_parameters or ())
    return str(names[0]) if len(names) == 1 else None
