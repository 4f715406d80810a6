"""Whether the installed transformers can make the input embeddings' output need a gradient, which
reentrant gradient checkpointing asks for."""

from __future__ import annotations

from typing import Any

from lora_doctor.results.error_report import ErrorReport
from lora_doctor.text import one_line

_HOOKS = ("_require_grads_hook", "_require_grads_hooks")


def why_not(model: Any) -> ErrorReport | None:
    """What ``enable_input_require_grads`` of this model raises; ``None`` when it does not raise or
    there is no such method. The model stays as it is."""
    enable = getattr(model, "enable_input_require_grads", None)
    if enable is None:
        return None
    before = {name: vars(model)[name] for name in _HOOKS if name in vars(model)}
    try:
        enable()
    except Exception as error:  # noqa: BLE001 - what it raises is the answer
        return ErrorReport(type(error).__name__, one_line(error))
    finally:
        for name in _HOOKS:
            made = vars(model).pop(name, None)
            for hook in made if isinstance(made, list) else [made]:
                if hook is not None and hook is not before.get(name):
                    hook.remove()
        vars(model).update(before)
    return None
