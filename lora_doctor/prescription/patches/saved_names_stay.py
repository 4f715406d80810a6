"""Names in an adapter file that the model has are left as they are when the adapter is loaded.

transformers 5 renames the weights of old checkpoints while it loads them, and PEFT runs saved
adapters through the same renames, so that adapters from before still load. Some renames match the
new names too (``layers.`` -> ``language_model.layers.``): then an adapter that was saved today is
looked for under a name that no layer has, and stays at zero.

With the patch a file whose names are all names of this model's adapters is not renamed at all; in
another one, the names that the model has keep their tensors whatever the renames make of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from lora_doctor.prescription.patches._support import Changes, Once

NAME = "saved_names_stay"
SUMMARY = "Leaves names of saved adapters as they are where the model has them"

_MODULE = "peft.utils.transformers_weight_conversion"
_CONVERT = "convert_peft_adapter_state_dict_for_transformers"
_once = Once()


def why_not() -> str | None:
    """Why it does not fit the installed PEFT, or ``None``."""
    try:
        import peft
    except ImportError as error:
        return f"PEFT cannot be imported: {error}"
    module = _conversion()
    if module is not None and not callable(getattr(module, _CONVERT, None)):
        return f"PEFT {peft.__version__}'s {_MODULE} has no {_CONVERT}"
    return None


def install() -> Callable[[], None]:
    """Patch PEFT's renaming; nothing where the installed PEFT or transformers renames nothing."""
    _once.forget()
    module = _conversion()
    if module is None:
        return _nothing
    with Changes() as changes:
        changes.around(module, _CONVERT, _keeping)
    return changes.undo


def _conversion() -> Any:
    """PEFT's module that renames; ``None`` where there is none, or not for this transformers."""
    try:
        return importlib.import_module(_MODULE)
    except ImportError:
        return None


def _keeping(original: Any) -> Any:
    def convert(
        model: Any, peft_config: Any, adapter_state_dict: Any, adapter_name: str = "default"
    ) -> Any:
        import peft

        if not isinstance(model, peft.PeftModel):
            return original(model, peft_config, adapter_state_dict, adapter_name)
        names = peft.get_peft_model_state_dict(
            model, adapter_name=adapter_name, save_embedding_layers=False
        )
        own = {name: value for name, value in adapter_state_dict.items() if name in names}
        if len(own) == len(adapter_state_dict):
            renamed: Any = {}
        else:
            renamed = original(model, peft_config, adapter_state_dict, adapter_name)
        if any(name not in renamed for name in own):
            _once.warning(
                f"patch {NAME}: {len(own)} of {len(adapter_state_dict)} names in the adapter file "
                f"are those of {type(model.get_base_model()).__name__} and stay as they are"
            )
        return {**own, **renamed}

    return convert


def _nothing() -> None:
    """There is nothing to undo."""
