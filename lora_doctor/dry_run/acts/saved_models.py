"""A model's own ``save_pretrained`` while adapters of ``get_peft_model`` are in it: PEFT's layers
stand where the class has its own, so that the file has names which loading does not find. And what
it writes where other processes hold the values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import processes
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.outputs import Redirected
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
            folder = named.get("save_directory", *arguments[:1])
            if names:
                _tell(acting, model, folder, names)
            if processes.size() > 1 and processes.rank() == 0:
                tell_empty(acting, model, folder)
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


def tell_empty(acting: Acting, model: Any, folder: Any) -> None:
    """Tell of tensors without values in the files of a model that was saved into this folder."""
    places = Redirected(acting)
    if not places.is_of_this_run(folder):  # an earlier run's may lie there
        return
    written = os.path.abspath(str(places.to_read(folder)))
    shapes = dict(_written(Path(written)))
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if not empty:
        return
    place = caller()
    acting.journal.tell(
        "saved_empty",
        path=places.of_user(written),
        model_class=type(model).__name__,
        tensors=len(shapes),
        empty=len(empty),
        names=empty[:_MOST_NAMES],
        place=None if place is None else vars(place),
    )


def _written(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the files of a model; those of an adapter are looked at elsewhere."""
    from safetensors import safe_open

    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, tuple(file.get_slice(name).get_shape())


def _adapters(acting: Acting, module: ModuleType) -> None:
    def saving(original: Any, *arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if not acting.in_contract:
            acting.journal.tell("adapter_saved")
        return result

    acting.replaced.around(module.PeftModel, "save_pretrained", saving)
