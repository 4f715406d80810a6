"""What the rules about adapters that exist say alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, Location, Measurement, Proof
from lora_doctor.static.adapter_files import CONFIG

if TYPE_CHECKING:
    from lora_doctor.rule_api import AdapterLoading

LOADED = "PeftModel.from_pretrained"


def weights_file(case: Case) -> Location:
    """The file of the adapter's weights."""
    return _file(case, case.adapter.weights_name)


def config_file(case: Case) -> Location:
    """The adapter's config."""
    return _file(case, CONFIG)


def header_of(case: Case) -> str:
    """Where the names and shapes of the tensors are from."""
    return "pickle, not loaded" if case.adapter.pickled else "safetensors header"


def _file(case: Case, name: str) -> Location:
    adapter = case.adapter
    if adapter.snapshot is not None:
        return Location("file", f"{adapter.place}/{name}")
    return Location("file", str(adapter.folder / name))


def loaded(loading: AdapterLoading) -> Proof:
    """How the finding is known."""
    return Proof(
        "measured",
        f"the installed PEFT loaded the adapter into {loading.model_class} on the meta device",
    )


def base_class(loading: AdapterLoading) -> Measurement:
    """What the adapter was loaded onto."""
    return Measurement("base model's class", loading.model_class, "installed transformers")


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as torch writes it."""
    return f"[{', '.join(map(str, shape))}]"
