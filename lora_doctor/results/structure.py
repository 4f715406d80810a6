"""What the meta evidence says: the model at full size, and what the installed PEFT did to it.

Only data, so that rules and reports can read it without torch. Gathered by ``meta.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lora_doctor.results.built_in_adapters import BuiltIn
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.from_json import from_json
from lora_doctor.results.injection import Injection
from lora_doctor.results.note import Note
from lora_doctor.results.quantization import Quantization
from lora_doctor.results.stacked_adapters import Stacked

TowerKind = Literal["language", "vision", "audio", "projector", "head", "other"]
ModuleKind = Literal["linear", "conv1d", "conv", "embedding", "norm", "parameter", "other"]
Role = Literal["attention", "mlp", "experts", "router", "head", "embedding", "projector", "other"]


@dataclass(frozen=True)
class ModuleGroup:
    """Modules that are alike: the same path but for layer numbers, class and shape."""

    #: Module path with every number as ``*``, such as ``model.layers.*.mlp.down_proj``; of a
    #: parameter, it ends in the parameter's name.
    pattern: str
    #: Last part of the path.
    leaf: str
    #: Class of the modules.
    class_name: str
    #: ``parameter``: an ``nn.Parameter`` with three dimensions or more that belongs to no linear
    #: layer (fused experts).
    kind: ModuleKind
    #: What it is for, as far as its place tells.
    role: Role
    #: Path of the tower that it stands in.
    tower: str
    #: Modules that are alike.
    count: int
    #: Shape of the weight; rows are outputs for ``linear``.
    shape: tuple[int, ...] = ()
    #: Parameters of all of them together.
    parameters: int = 0
    #: How many of ``count`` the installed PEFT put an adapter on.
    adapted: int = 0
    #: Up to three real paths.
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tower:
    """A part of the model with one job."""

    #: Module path.
    path: str
    #: Which job: one of the modalities, what joins them, or a head.
    kind: TowerKind
    #: How it was recognised, in words.
    why: str
    #: Parameters of all of it.
    parameters: int = 0


@dataclass(frozen=True)
class ForwardParameter:
    """A parameter of ``forward``."""

    #: Its name.
    name: str
    #: Whether it has no default.
    required: bool
    #: Whether its default is ``None``.
    default_is_none: bool


@dataclass(frozen=True)
class HeadClass:
    """Another class that transformers has for the same config."""

    #: Auto class that loads it.
    auto_class: str
    #: The class.
    class_name: str
    #: PEFT's ``task_type`` that fits it.
    task_type: str | None


@dataclass(frozen=True)
class Structure:
    """The class that would be loaded, at full size on the meta device, with the adapters in it."""

    #: Class that would be loaded.
    model_class: str
    #: Module in which the class is defined.
    python_module: str
    #: What loads it: ``AutoModelForCausalLM``, the class itself, the factory.
    loaded_by: str
    #: ``model_type`` of its config.
    model_type: str | None
    #: The recipe with open keys filled: ``values``, ``origins`` and ``complete``, as
    #: :meth:`Recipe.to_json` gives them.
    recipe: Mapping[str, Any]
    #: Every module, alike ones together.
    groups: tuple[ModuleGroup, ...]
    #: Language, vision and audio tower, and what joins them.
    towers: tuple[Tower, ...]
    #: What PEFT did.
    injection: Injection
    #: Parameters of ``forward``.
    forward_parameters: tuple[ForwardParameter, ...]
    #: Whether ``forward`` has ``**kwargs``.
    forward_takes_any: bool
    #: Its main input, such as ``input_ids``.
    main_input_name: str
    #: Keyword arguments that the PEFT wrapper of this ``task_type`` passes to the model when called
    #: with ``input_ids``, ``attention_mask`` and ``labels`` (seen by calling it on a recorder).
    wrapper_sends: tuple[str, ...]
    #: Of these, those that are ``None``.
    wrapper_sends_none: tuple[str, ...]
    #: Whether the class has ``prepare_inputs_for_generation``.
    has_prepare_inputs: bool
    #: Whether it can generate.
    can_generate: bool
    #: Whether it is an encoder with a decoder.
    is_encoder_decoder: bool
    #: Whether it has a head for a task.
    has_head: bool
    #: Classes with a head for the same config.
    head_classes: tuple[HeadClass, ...]
    #: Dtype of the checkpoint or config.
    native_dtype: str | None
    #: Parameters at full size, without adapters.
    total_parameters: int
    #: Heads that the PEFT wrapper trains and saves unasked, whether or not this model has them.
    wrapper_keeps: tuple[str, ...] = ()
    #: Names of tied weights.
    tied_weights: tuple[str, ...] = ()
    #: Module path that ``get_input_embeddings`` returns; ``None`` with ``input_embeddings_error``.
    input_embeddings: str | None = None
    #: What ``get_input_embeddings`` raised.
    input_embeddings_error: ErrorReport | None = None
    #: What ``enable_input_require_grads`` raises, where there are no input embeddings to be had.
    input_gradients_error: ErrorReport | None = None
    #: Whether the class says so.
    supports_gradient_checkpointing: bool = False
    #: Names of PEFT adapters that the model brings itself.
    built_in_adapters: tuple[str, ...] = ()
    #: What becomes of the built-in adapters; ``None`` when there are none.
    built_in: BuiltIn | None = None
    #: What several calls of ``get_peft_model`` made; ``None`` unless it was called more than once.
    stacked: Stacked | None = None
    #: Heads that PEFT's wrapper for the adapter's task type would train and save, frozen in a
    #: model that has the adapter without the wrapper.
    left_out_heads: tuple[str, ...] = ()
    #: What the installed PEFT raises for one layer of the installed bitsandbytes, where the model
    #: is loaded with such layers; ``None`` where it does not, or was not tried.
    bitsandbytes_refusal: ErrorReport | None = None
    #: What would be quantized; ``None`` where neither recipe nor checkpoint asks for it.
    quantization: Quantization | None = None
    #: What else was seen.
    notes: tuple[Note, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Structure:
        return from_json(cls, data)

    def tower(self, path: str) -> Tower | None:
        """The tower with this path."""
        return next((tower for tower in self.towers if tower.path == path), None)

    def groups_of(self, *kinds: TowerKind) -> tuple[ModuleGroup, ...]:
        """The module groups that stand in towers of these kinds."""
        paths = {tower.path for tower in self.towers if tower.kind in kinds}
        return tuple(group for group in self.groups if group.tower in paths)
