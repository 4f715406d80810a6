"""A model's own ``save_pretrained`` while adapters of ``get_peft_model`` are in it: PEFT's layers
stand where the class has its own, so that the file has names which loading does not find."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.call_sites import caller

#: What PEFT's layers put into the names of the weights that they wrap.
_WRAPPED = (".base_layer.", ".original_module.")
_MOST_NAMES = 4


def prepare(acting: Acting) -> None:
    """Around the calls that save models and adapters."""
    acting.after("transformers.modeling_utils", lambda module: _models(acting, module))
    acting.after("peft.peft_model", lambda module: _adapters(acting, module))


def _models(acting: Acting, module: ModuleType) -> None:
    def saving(original: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        result = original(model, *arguments, **named)
        if not acting.in_contract and not getattr(model, "_hf_peft_config_loaded", False):
            own = named.get("state_dict") or (name for name, _ in model.named_parameters())
            names = [name for name in map(str, own) if any(one in name for one in _WRAPPED)]
            if names:
                _tell(acting, model, named.get("save_directory", *arguments[:1]), names)
        return result

    acting.replaced.around(module.PreTrainedModel, "save_pretrained", saving)


def _tell(acting: Acting, model: Any, path: Any, names: list[str]) -> None:
    place = caller()
    acting.journal.tell(
        "saved_with_adapters",
        path=str(path),
        model_class=type(model).__name__,
        weights=len(names),
        names=names[:_MOST_NAMES],
        place=None if place is None else vars(place),
    )


def _adapters(acting: Acting, module: ModuleType) -> None:
    def saving(original: Any, *arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if not acting.in_contract:
            acting.journal.tell("adapter_saved")
        return result

    acting.replaced.around(module.PeftModel, "save_pretrained", saving)
