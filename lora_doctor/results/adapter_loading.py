"""What the installed PEFT did with a saved adapter: data only, no verdict.

Filled by ``evidence.adapter``, read by the rules about adapters that exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.injection import RenamedTensor


@dataclass(frozen=True)
class OtherShape:
    """A tensor that has one shape in the file and another in the model."""

    #: Its name in the model.
    name: str
    #: Shape in the file, in elements.
    in_file: tuple[int, ...]
    #: Shape in the model with the adapter, in elements.
    in_model: tuple[int, ...]


@dataclass(frozen=True)
class KeptDtype:
    """A module that is saved with an adapter and that loading leaves in the dtype of the file."""

    #: Its path in the base model.
    module: str
    #: Its class.
    class_name: str
    #: Its dtype after loading, as torch names it.
    dtype: str
    #: That of the module which it stands in for.
    of_base: str
    #: What it raises on a tensor in the model's dtype; empty where it raises nothing, or was not
    #: run.
    raises: str = ""


@dataclass(frozen=True)
class Landing:
    """Where the tensors of an adapter file went when PEFT loaded it, on the meta device."""

    #: Tensors in the file.
    tensors: int
    #: What PEFT raised; ``None`` when it loaded the file.
    error: ErrorReport | None = None
    #: Names in the file of tensors that no parameter has taken.
    nowhere: tuple[str, ...] = ()
    #: The same, by the names under which PEFT looked for their parameters.
    looked_for: tuple[str, ...] = ()
    #: Parameters of the adapter that the file has no value for, by their names in the model.
    without_value: tuple[str, ...] = ()
    #: Parameters of the adapter in the model.
    parameters: int = 0
    #: Names in the file of tensors that have taken the place of weights of the base model, which
    #: neither the kind of adapter nor PEFT's own saving of embeddings accounts for.
    over_base: tuple[str, ...] = ()
    #: Modules that are left in another dtype than the model's, where it is loaded with
    #: ``low_cpu_mem_usage=True``.
    kept_dtypes: tuple[KeptDtype, ...] = ()
    #: Tensors that do not fit; PEFT has loaded nothing then.
    other_shapes: tuple[OtherShape, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor has a parameter, and every parameter of the adapter a tensor."""
        return (
            self.error is None
            and not self.nowhere
            and not self.without_value
            and not self.other_shapes
        )


@dataclass(frozen=True)
class Renaming:
    """Other names for the tensors of an adapter file, tried on the real model."""

    #: Why the names differ, in words.
    cause: str
    #: One tensor under both names.
    example: RenamedTensor
    #: Tensors that have a place in the model under the new names.
    fits: int
    #: Tensors that have one under the names in the file.
    fitted: int
    #: New name of each tensor.
    names: Mapping[str, str]
    #: Entries of adapter_config.json that change with them.
    config: Mapping[str, Any] = field(default_factory=dict)
    #: What PEFT made of the new names and the new config.
    landing: Landing | None = None

    @property
    def proven(self) -> bool:
        """Whether PEFT loads the renamed adapter completely."""
        return self.landing is not None and self.landing.complete


@dataclass(frozen=True)
class AdapterLoading:
    """A saved adapter, loaded by the installed PEFT onto the real class on the meta device."""

    #: Class of the base model.
    model_class: str
    #: Where the tensors went.
    landing: Landing
    #: Names under which more of the tensors land; ``None`` when all do, or none were found.
    renaming: Renaming | None = None
