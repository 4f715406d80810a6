"""What the meta evidence says: the model at full size, and what the installed PEFT did to it.

Only data, so that rules and reports can read it without torch. Gathered by ``meta.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lora_doctor.results.from_json import from_json
from lora_doctor.results.note import Note

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
    #: Its name.
    """A parameter of ``forward``."""

    #: Its name.
    name: str
    #: Whether it has no default.
    required: bool
    #: Whether its default is ``None``.
    default_is_none: bool


@dataclass(frozen=True)
class ErrorReport:
    """An exception seen in a child process."""

    #: Class of the exception.
    type: str
    #: Its message.
    message: str
    #: ``file:line`` of the deepest frame.
    where: str = ""
    #: The traceback; may be empty.
    traceback: str = ""
    #: ``class.attribute`` where code asked the installed transformers for an attribute that it does
    #: not have.
    lacks: str = ""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}".strip(": ")


@dataclass(frozen=True)
class Unmatched:
    """An entry of a recipe key that names nothing in the model, or changes nothing there."""

    #: ``target_modules``, ``target_parameters`` or ``modules_to_save``, whose entry names nothing;
    #: ``rank_pattern``, ``alpha_pattern``, ``exclude_modules`` or ``layers_to_transform``, without
    #: whose entry the same adapters are put on.
    key: str
    #: The entry.
    entry: str


@dataclass(frozen=True)
class LooseMatch:
    """An entry of ``modules_to_save`` that names more modules than those that are called so: PEFT
    compares the end of a path, without a dot before it."""

    #: The entry.
    entry: str
    #: Patterns of the modules that only end in the entry.
    patterns: tuple[str, ...]
    #: How many they are.
    modules: int
    #: Parameters in all of them.
    parameters: int
    #: Whether any of them holds other modules.
    blocks: bool
    #: Patterns of the adapted layers that are, or lie in, one of them.
    adapted: tuple[str, ...] = ()
    #: Patterns of the modules that are called so.
    meant: tuple[str, ...] = ()
    #: Parameters in all of ``meant``.
    meant_parameters: int = 0


@dataclass(frozen=True)
class Converted:
    """A target entry that PEFT itself turned into parameters."""

    #: The entry.
    entry: str
    #: Names of the parameters.
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.entry} -> {', '.join(self.parameters)}"


@dataclass(frozen=True)
class RenamedTensor:
    """A tensor that PEFT saves under one name and looks for under another."""

    #: Its name in the adapter file.
    saved: str
    #: The name that PEFT makes of it when it loads the file.
    looked_for: str


@dataclass(frozen=True)
class Injection:
    """What the installed PEFT did with this adapter config on the meta device."""

    #: Whether it came through.
    ok: bool
    #: PEFT class that ``get_peft_model`` made.
    wrapper: str | None = None
    #: What it raised.
    error: ErrorReport | None = None
    #: Entries that name nothing, or without which PEFT puts the same adapters on.
    unmatched: tuple[Unmatched, ...] = ()
    #: Target entries that PEFT itself turned into parameters.
    converted: tuple[Converted, ...] = ()
    #: The target modules that PEFT used in the end (its own default, or what ``all-linear``
    #: became).
    resolved_targets: tuple[str, ...] = ()
    #: Entries of ``modules_to_save`` that name more modules than those that are called so.
    loose_matches: tuple[LooseMatch, ...] = ()
    #: What PEFT warned of.
    warnings: tuple[str, ...] = ()
    #: Parameters of the adapters.
    adapter_parameters: int = 0
    #: Parameters that would train.
    trainable_parameters: int = 0
    #: Parameters of the model with its adapters.
    total_parameters: int = 0
    #: Parameters left trainable that are neither adapter nor ``modules_to_save``, as patterns.
    trainable_other: tuple[str, ...] = ()
    #: Parameters of the adapters that are trainable.
    trainable_adapter_parameters: int = 0
    #: How many parameters ``trainable_other`` stands for.
    trainable_other_parameters: int = 0
    #: Patterns of adapted layers whose adapters the installed PEFT would not find again in its own
    #: file.
    not_reloaded: tuple[str, ...] = ()
    #: One of their tensors; ``None`` when all are found.
    not_reloaded_example: RenamedTensor | None = None
    #: Why no adapter was made on the meta device, whose weights have no numbers: this kind looks at
    #: them. Which layers are adapted is then what PEFT's matcher says.
    not_made: str = ""


@dataclass(frozen=True)
class AdapterState:
    """One adapter in a model that brings adapters itself."""

    #: Name of the adapter.
    name: str
    #: Whether the model brings it; otherwise it is the recipe's.
    brought: bool
    #: Layers that it sits in.
    layers: int
    #: Weight tensors that it has.
    tensors: int
    #: Parameters that it has.
    parameters: int
    #: Tensors that are trainable as the model comes out of loading.
    trainable: int = 0
    #: Layers in which it takes part as the model comes out of loading.
    active: int = 0
    #: ``trainable`` after the recipe's adapter was put on; ``None`` without one.
    trainable_wrapped: int | None = None
    #: ``active`` after the recipe's adapter was put on; ``None`` without one.
    active_wrapped: int | None = None


@dataclass(frozen=True)
class BuiltIn:
    """Adapters that a model brings itself, and what becomes of them."""

    #: Each adapter.
    adapters: tuple[AdapterState, ...]
    #: Whether the recipe puts an adapter of its own on top; when not, the built-in ones are what is
    #: trained.
    wrapped: bool
    #: Whether ``from_pretrained`` of this transformers makes every weight trainable again.
    loading_unfreezes: bool
    #: Patterns of weights that are no adapter and would be trained.
    base_trainable: tuple[str, ...] = ()
    #: Parameters of ``base_trainable``.
    base_trainable_parameters: int = 0
    #: Parameters that are no adapter.
    base_parameters: int = 0


@dataclass(frozen=True)
class StackedAdapter:
    """One adapter of a model that was wrapped more than once."""

    #: Its ``peft_type``.
    method: str
    #: Name of the adapter.
    name: str
    #: Number of the ``PeftModel`` that it belongs to, 0 is the outermost; ``None`` when none of
    #: them knows it.
    wrapper: int | None
    #: Weight tensors that it has.
    tensors: int
    #: Of these, trainable.
    trainable: int
    #: Of these, written by the outermost model's ``save_pretrained``.
    saved: int
    #: Whether it takes part in the forward.
    active: bool


@dataclass(frozen=True)
class Stacked:
    """What several calls of ``get_peft_model`` made."""

    #: Class and method, the outermost first.
    wrappers: tuple[str, ...]
    #: Each adapter.
    members: tuple[StackedAdapter, ...]
    #: Tensors that are saved.
    saved_names: int = 0
    #: Of these, those whose name no adapter on the bare model has.
    renamed: int = 0
    #: One of these names.
    renamed_example: str = ""
    #: Layers with an adapter that its config does not name: an earlier call put it there, and the
    #: later one took its name.
    leftovers: tuple[str, ...] = ()
    #: Tensors in ``leftovers``.
    leftover_tensors: int = 0
    #: Where the outermost is in the model; empty when it is the model.
    path: str = ""


@dataclass(frozen=True)
class FloatPart:
    """A part that must stay in floating point, and how much of it would be quantized."""

    #: ``head``: what transformers keeps out of quantization by itself unless it is given a list.
    kind: Literal["adapter", "modules_to_save", "head"]
    #: Name of the adapter, or path of the module.
    name: str
    #: Weight tensors that it has.
    tensors: int
    #: Of these, how many would be quantized.
    quantized: int
    #: Paths of some of the quantized ones.
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeptWeights:
    """Weights that stay as they are where the model is loaded in 4 or 8 bits; alike ones
    together."""

    #: Path of the module or parameter with every number as ``*``.
    pattern: str
    #: Class of the module.
    class_name: str
    #: Why: a linear layer that a list skips, a parameter that is no layer (fused experts), a
    #: convolution, or a module that is no linear layer to the library.
    kind: Literal["skipped", "parameter", "convolution", "other"]
    #: How many there are.
    count: int
    #: Numbers in all of them together.
    weights: int


@dataclass(frozen=True)
class Quantization:
    """Which layers the installed transformers would quantize: its own replacement, run on the
    module tree at full size."""

    #: Format of the quantized weights.
    kind: Literal["4bit", "8bit"]
    #: Who asks for it: the recipe, or the checkpoint, whose list wins over the recipe's.
    origin: Literal["recipe", "checkpoint"]
    #: The list of modules to skip that is in force; ``None`` when nobody gave one.
    skip: tuple[str, ...] | None
    #: The list that transformers makes when it is given none.
    default_skip: tuple[str, ...]
    #: Layers that can be quantized.
    linears: int
    #: Layers that would be.
    quantized: int
    #: Parts that must stay in floating point.
    parts: tuple[FloatPart, ...] = ()
    #: A list with which, by the same replacement, all parts stay as they are and everything else is
    #: quantized as before; empty when none is needed or none does it.
    proposed_skip: tuple[str, ...] = ()
    #: Layers that are quantized with ``proposed_skip``.
    quantized_with_proposal: int = 0
    #: Numbers in the matrices of the model, embeddings and output head left out.
    weights: int = 0
    #: Of ``weights``, those that would be quantized.
    quantized_weights: int = 0
    #: The others, the most numbers first.
    kept: tuple[KeptWeights, ...] = ()


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
