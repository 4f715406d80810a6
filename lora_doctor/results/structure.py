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
    """Modules that are alike: the same path but for layer numbers, class and shape.

    ``pattern``: the path with every number as ``*``, such as ``model.layers.*.mlp.down_proj``.
    ``kind`` ``parameter`` is an ``nn.Parameter`` with three dimensions or more that belongs to no
    linear layer (fused experts); its ``pattern`` ends in the parameter's name.
    ``shape``: of the weight, rows are outputs for ``linear``. ``adapted``: how many of ``count``
    the installed PEFT put an adapter on. ``examples``: up to three real paths.
    """

    pattern: str
    leaf: str
    class_name: str
    kind: ModuleKind
    role: Role
    tower: str
    count: int
    shape: tuple[int, ...] = ()
    parameters: int = 0
    adapted: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tower:
    """A part of the model with one job. ``why``: how it was recognised, in words."""

    path: str
    kind: TowerKind
    why: str
    parameters: int = 0


@dataclass(frozen=True)
class ForwardParameter:
    name: str
    required: bool
    default_is_none: bool


@dataclass(frozen=True)
class ErrorReport:
    """An exception seen in a child process. ``where``: file:line of the deepest frame."""

    type: str
    message: str
    where: str = ""
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}".strip(": ")


@dataclass(frozen=True)
class Unmatched:
    """An entry of a recipe key that names nothing in the model."""

    #: ``target_modules``, ``target_parameters`` or ``modules_to_save``.
    key: str
    entry: str


@dataclass(frozen=True)
class Converted:
    """A target entry that PEFT itself turned into parameters."""

    entry: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.entry} -> {', '.join(self.parameters)}"


@dataclass(frozen=True)
class RenamedTensor:
    """A tensor that PEFT saves under one name and looks for under another."""

    #: Its name in the adapter file.
    saved: str
    looked_for: str


@dataclass(frozen=True)
class Injection:
    """What the installed PEFT did with this adapter config on the meta device.

    ``wrapper``: PEFT class that ``get_peft_model`` made. ``unmatched``: entries of
    ``target_modules``, ``target_parameters`` or ``modules_to_save`` that name nothing.
    ``converted``: target entries that PEFT itself turned into parameters. ``resolved_targets``:
    the target modules that PEFT used in the end (its own default, or what ``all-linear``
    became). ``trainable_other``: parameters left trainable that are neither adapter nor
    ``modules_to_save``, ``trainable_other_parameters`` how many numbers these are;
    ``trainable_adapter_parameters``: of the adapters'. ``not_reloaded``: patterns of adapted
    layers whose adapters the installed PEFT would not find again in its own file,
    ``not_reloaded_example`` one of their tensors.
    """

    ok: bool
    wrapper: str | None = None
    error: ErrorReport | None = None
    unmatched: tuple[Unmatched, ...] = ()
    converted: tuple[Converted, ...] = ()
    resolved_targets: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    adapter_parameters: int = 0
    trainable_parameters: int = 0
    total_parameters: int = 0
    trainable_other: tuple[str, ...] = ()
    trainable_adapter_parameters: int = 0
    trainable_other_parameters: int = 0
    not_reloaded: tuple[str, ...] = ()
    not_reloaded_example: RenamedTensor | None = None


@dataclass(frozen=True)
class AdapterState:
    """One adapter in a model that brings adapters itself.

    ``brought``: by the model; otherwise it is the recipe's. ``layers`` it sits in, ``tensors`` and
    ``parameters`` it has. ``trainable`` tensors and ``active`` layers: as the model comes out of
    loading; the same ``_wrapped``: after the recipe's adapter was put on, ``None`` without one.
    """

    name: str
    brought: bool
    layers: int
    tensors: int
    parameters: int
    trainable: int = 0
    active: int = 0
    trainable_wrapped: int | None = None
    active_wrapped: int | None = None


@dataclass(frozen=True)
class BuiltIn:
    """Adapters that a model brings itself, and what becomes of them.

    ``wrapped``: whether the recipe puts an adapter of its own on top; when not, the built-in ones
    are what is trained. ``loading_unfreezes``: whether ``from_pretrained`` of this transformers
    makes every weight trainable again. ``base_trainable``: patterns of weights that are no adapter
    and would be trained, of ``base_parameters``.
    """

    adapters: tuple[AdapterState, ...]
    wrapped: bool
    loading_unfreezes: bool
    base_trainable: tuple[str, ...] = ()
    base_trainable_parameters: int = 0
    base_parameters: int = 0


@dataclass(frozen=True)
class StackedAdapter:
    """One adapter of a model that was wrapped more than once.

    ``wrapper``: number of the ``PeftModel`` that it belongs to, 0 is the outermost; ``None`` when
    none of them knows it. ``tensors`` it has; how many are ``trainable``, and how many the
    outermost model's ``save_pretrained`` writes. ``active``: takes part in the forward.
    """

    method: str
    name: str
    wrapper: int | None
    tensors: int
    trainable: int
    saved: int
    active: bool


@dataclass(frozen=True)
class Stacked:
    """What several calls of ``get_peft_model`` made.

    ``wrappers``: class and method, the outermost first. ``saved_names``: tensors that are saved,
    ``renamed`` those whose name no adapter on the bare model has, ``renamed_example`` one of them.
    ``leftovers``: layers with an adapter that its config does not name, ``leftover_tensors`` in
    them: an earlier call put it there, and the later one took its name.
    """

    wrappers: tuple[str, ...]
    members: tuple[StackedAdapter, ...]
    saved_names: int = 0
    renamed: int = 0
    renamed_example: str = ""
    leftovers: tuple[str, ...] = ()
    leftover_tensors: int = 0


@dataclass(frozen=True)
class FloatPart:
    """A part that must stay in floating point, and how much of it would be quantized.

    ``kind``: ``adapter`` (``name`` is the adapter's), ``modules_to_save`` (a path) or ``head``:
    what transformers keeps out of quantization by itself unless it is given a list.
    """

    kind: Literal["adapter", "modules_to_save", "head"]
    name: str
    tensors: int
    quantized: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantization:
    """Which layers the installed transformers would quantize: its own replacement, run on the
    module tree at full size.

    ``origin``: who asks for it, the recipe or the checkpoint, whose list wins over the recipe's.
    ``skip``: the list in force, ``None`` when nobody gave one; ``default_skip``: the one that
    transformers then makes. ``linears``: layers that can be quantized. ``proposed_skip``: a list
    with which, by the same replacement, all parts stay as they are and everything else is
    quantized as before; empty when none is needed or none does it.
    """

    kind: Literal["4bit", "8bit"]
    origin: Literal["recipe", "checkpoint"]
    skip: tuple[str, ...] | None
    default_skip: tuple[str, ...]
    linears: int
    quantized: int
    parts: tuple[FloatPart, ...] = ()
    proposed_skip: tuple[str, ...] = ()
    quantized_with_proposal: int = 0


@dataclass(frozen=True)
class HeadClass:
    """Another class that transformers has for the same config."""

    auto_class: str
    class_name: str
    task_type: str | None


@dataclass(frozen=True)
class Structure:
    """The class that would be loaded, at full size, with the adapters in it.

    ``model_class``: class name; ``loaded_by``: ``AutoModelForCausalLM``, the class itself, the
    factory …; ``recipe``: the recipe with open keys filled (:meth:`Recipe.to_json`);
    ``wrapper_sends``: keyword arguments that the wrapper of this ``task_type`` passes to the
    model when called with ``input_ids``, ``attention_mask`` and ``labels`` (seen by calling it on
    a recorder), those that are ``None`` too; ``wrapper_keeps``: heads that it trains and saves
    unasked, whether or not this model has them; ``input_embeddings``: module path that
    ``get_input_embeddings`` returns, or ``None`` with ``input_embeddings_error``;
    ``input_gradients_error``: what ``enable_input_require_grads`` then raises, if it does.
    ``built_in_adapters``: names of PEFT adapters that the model brings itself; ``built_in``
    says what becomes of them. ``stacked``: ``None`` unless ``get_peft_model`` was called more
    than once.
    ``quantization``: ``None`` where neither recipe nor checkpoint asks for it.
    """

    model_class: str
    python_module: str
    loaded_by: str
    model_type: str | None
    recipe: Mapping[str, Any]
    groups: tuple[ModuleGroup, ...]
    towers: tuple[Tower, ...]
    injection: Injection
    forward_parameters: tuple[ForwardParameter, ...]
    forward_takes_any: bool
    main_input_name: str
    wrapper_sends: tuple[str, ...]
    wrapper_sends_none: tuple[str, ...]
    has_prepare_inputs: bool
    can_generate: bool
    is_encoder_decoder: bool
    has_head: bool
    head_classes: tuple[HeadClass, ...]
    native_dtype: str | None
    total_parameters: int
    wrapper_keeps: tuple[str, ...] = ()
    tied_weights: tuple[str, ...] = ()
    input_embeddings: str | None = None
    input_embeddings_error: ErrorReport | None = None
    input_gradients_error: ErrorReport | None = None
    supports_gradient_checkpointing: bool = False
    built_in_adapters: tuple[str, ...] = ()
    built_in: BuiltIn | None = None
    stacked: Stacked | None = None
    quantization: Quantization | None = None
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
