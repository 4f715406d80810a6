"""The adapters in a model: which layers have one, which parameters it has, which should train.

Told by PEFT's own base classes, so that every adapter type of the installed PEFT is seen.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_doctor.model.built_in_adapters import active_in
from lora_doctor.model.module_path import is_numbered, pattern_of
from lora_doctor.model.peft_models import other_parts, peft_models
from lora_doctor.nn.shards import held_here
from lora_doctor.results.verification import AdapterGroup
from lora_doctor.text import clean_path

#: Paths that a group names.
_EXAMPLES = 4


@dataclass
class AdapterParameter:
    """One parameter of an adapter. ``part``: ``lora_A``, ``modules_to_save``, …

    ``batches``: kinds of batch that gave it a gradient; ``largest``: the largest absolute gradient
    seen; ``seen``: whether there was any gradient tensor, a zero one too.
    """

    name: str
    part: str
    tensor: Any
    batches: list[str] = field(default_factory=list)
    largest: float = 0.0
    seen: bool = False
    finite: bool = True
    moved: float = 0.0

    @property
    def dtype(self) -> str:
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def got_gradient(self) -> bool:
        return self.finite and self.largest > 0


@dataclass
class AdapterLayer:
    """A layer with an adapter. ``path`` is that of the layer in the model without PEFT.

    ``calls``: forwards in which it got at least one row; a mixture-of-experts layer gets none when
    no token is routed to it. ``not_fed``: it trains single tokens, and no batch has one of them.
    """

    path: str
    module: Any
    parameters: list[AdapterParameter]
    calls: int = 0
    not_fed: bool = False

    @property
    def pattern(self) -> str:
        return pattern_of(self.path)

    @property
    def trainable(self) -> list[AdapterParameter]:
        """Some adapter types keep counters and projections that are never trained."""
        return [parameter for parameter in self.parameters if parameter.tensor.requires_grad]

    @property
    def trained(self) -> bool:
        return bool(self.trainable) and all(p.got_gradient for p in self.trainable)

    @property
    def moved(self) -> bool:
        return bool(self.trainable) and all(p.moved > 0 for p in self.trainable)


def tuner_layer_class() -> Any:
    return importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer


def auxiliary_classes() -> tuple[Any, ...]:
    """Wrappers of modules that are trained as a whole (``modules_to_save``)."""
    other = importlib.import_module("peft.utils.other")
    names = ("AuxiliaryTrainingWrapper", "ModulesToSaveWrapper")
    return tuple(getattr(other, name) for name in names if hasattr(other, name))


def find_adapters(model: Any) -> list[AdapterLayer]:
    """Every layer with parameters of an active adapter; prompt encoders count as one layer."""
    tuner, auxiliary = tuner_layer_class(), auxiliary_classes()
    owners = {path: _active_of(part) for path, part in peft_models(model).items()}
    unwrapped = () if owners else active_adapters(model)
    layers: list[AdapterLayer] = []
    for path, module in model.named_modules():
        if isinstance(module, tuner):
            own, inner = "base_layer", ""
        elif isinstance(module, auxiliary):
            own, inner = "original_module", "token_adapter"  # the latter is a tuner layer itself
        elif path == "prompt_encoder" or path.endswith(".prompt_encoder"):
            own, inner = "", ""
        else:
            continue
        parameters = []
        known = (names for owner, names in owners.items() if _lies_in(path, owner))
        active = next(known, unwrapped)
        # A model that brings its adapters has no wrapper to say which are active; its layers do.
        names = active or (active_in(module) if isinstance(module, tuner) else ())
        for name, tensor in module.named_parameters():
            parts = name.split(".")
            if parts[0] in (own, inner) or "base_layer" in parts:
                continue
            if names and not any(part in names for part in parts[:2]):
                continue
            part = parts[0] if parts[0] not in names else path.rpartition(".")[2]
            parameters.append(AdapterParameter(f"{path}.{name}", part, tensor))
        if parameters:
            layers.append(AdapterLayer(_layer_path(path, module), module, parameters))
    held = {id(one.tensor) for layer in layers for one in layer.parameters}
    return [*layers, *_other_layers(model, held)]


def _other_layers(model: Any, known: set[int]) -> Iterator[AdapterLayer]:
    """The same for what PEFT trains without a tuner layer. ``known``: ids of the parameters of
    tuner layers, which hold what they share as well."""
    for path, module in other_parts(model):
        own = [
            AdapterParameter(f"{path}.{name}", name.partition(".")[0], tensor)
            for name, tensor in module.named_parameters()
            if tensor.requires_grad and id(tensor) not in known
        ]
        if own:
            yield AdapterLayer(clean_path(path), module, own)


def active_adapters(model: Any) -> tuple[str, ...]:
    """Names of the active adapters; empty when there is no way to tell."""
    parts = peft_models(model).values() or (model,)
    return tuple(dict.fromkeys(name for part in parts for name in _active_of(part)))


def _lies_in(path: str, part: str) -> bool:
    return not part or path.startswith(f"{part}.")


def _active_of(model: Any) -> tuple[str, ...]:
    """Names of the active adapters of a PEFT model, or of one with transformers' own mixin."""
    for holder in (model, getattr(model, "base_model", None)):
        active = getattr(holder, "active_adapters", None)
        if callable(active):  # transformers' own PEFT mixin: a method, which raises without any
            if not getattr(holder, "_hf_peft_config_loaded", False):
                continue
            active = active()
        if isinstance(active, str):
            return (active,)
        if isinstance(active, (list, tuple)):
            return tuple(str(name) for name in active)
    return ()


def stray_parameters(model: Any, layers: list[AdapterLayer], bias: str) -> list[tuple[str, int]]:
    """Trainable parameters that belong to no active adapter: name and number of elements.

    ``bias`` is PEFT's setting: ``all`` and ``lora_only`` make biases trainable on purpose.
    """
    own = {id(p.tensor) for layer in layers for p in layer.parameters}
    adapted = {layer.path for layer in layers}
    stray = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in own:
            continue
        path, _, leaf = clean_path(name).rpartition(".")
        if "bias" in leaf and (bias == "all" or (bias.endswith("_only") and path in adapted)):
            continue
        stray.append((clean_path(name), int(parameter.numel())))
    return stray


def outside_adapters(
    model: Any, layers: list[AdapterLayer], sums: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """The checksums of parameters and buffers that are no part of an adapter: what it keeps beside
    its weights is its own to write (the running average of VeLoRA)."""
    ours = {id(layer.module) for layer in layers}
    starts = tuple(f"{path}." for path, module in model.named_modules() if id(module) in ours)
    wrapped = ("base_layer", "original_module")
    return {
        name: value
        for name, value in sums.items()
        if not name.startswith(starts) or any(part in wrapped for part in name.split("."))
    }


def groups_of(layers: list[AdapterLayer], kinds: list[str]) -> tuple[AdapterGroup, ...]:
    """What was seen of the layers, those that are alike together. ``kinds``: of the batches."""
    groups: dict[str, list[AdapterLayer]] = {}
    for layer in layers:
        groups.setdefault(layer.pattern, []).append(layer)
    return tuple(
        AdapterGroup(
            pattern=pattern,
            count=len(alike),
            with_gradient=sum(layer.trained for layer in alike),
            moved=sum(layer.moved for layer in alike),
            batches=tuple(
                kind
                for kind in dict.fromkeys(kinds)
                if any(kind in p.batches for layer in alike for p in layer.parameters)
            ),
            examples_without_gradient=tuple(layer.path for layer in alike if not layer.trained)[
                :_EXAMPLES
            ],
            dtypes=tuple(sorted({p.dtype for layer in alike for p in layer.trainable})),
        )
        for pattern, alike in groups.items()
    )


def count_calls(layers: list[AdapterLayer]) -> list[Any]:
    """Hooks that count in which forwards a layer gets rows; returns their handles.

    A forward that a backward runs again (gradient checkpointing) is no other one.
    """
    import torch

    def counter(layer: AdapterLayer) -> Any:
        def hook(_module: Any, inputs: Any, named: Any) -> None:
            if torch._C._current_graph_task_id() != -1:  # inside a backward
                return
            tensors = [x for x in (*inputs, *named.values()) if hasattr(x, "numel")]
            if not tensors or tensors[0].numel() > 0:
                layer.calls += 1

        return hook

    return [
        module.register_forward_pre_hook(counter(layer), with_kwargs=True)
        for layer in layers
        for module in _called(layer.module)
    ]


def _called(module: Any) -> list[Any]:
    """What runs where a layer is used. PEFT keeps the prompt encoders of its adapters in a
    dictionary, which itself is never called."""
    import torch

    return list(module.values()) if isinstance(module, torch.nn.ModuleDict) else [module]


def note_gradients(layers: list[AdapterLayer], kind: str) -> None:
    """Read the gradients of one backward, of a batch of this kind, into the layers."""
    import torch

    for parameter in every_parameter(layers):
        if parameter.tensor.grad is None:
            continue
        parameter.seen = True
        gradient = held_here(parameter.tensor.grad.detach())
        largest = float(gradient.abs().max()) if gradient.numel() else 0.0
        if not torch.isfinite(torch.tensor(largest)):
            parameter.finite = False
        elif largest > 0:
            parameter.largest = max(parameter.largest, largest)
            if kind not in parameter.batches:
                parameter.batches.append(kind)


def every_parameter(layers: list[AdapterLayer]) -> Iterator[AdapterParameter]:
    for layer in layers:
        yield from layer.parameters


def note_trained_tokens(layers: list[AdapterLayer], batches: list[Any]) -> None:
    """Mark the layers that train single tokens of which no batch has one."""
    import torch

    inputs = [value for batch in batches for value in batch.inputs.values()]
    ids = [value for value in inputs if getattr(value, "dtype", None) is torch.long]
    for layer in layers:
        trained = getattr(layer.module, "token_indices", None)
        if isinstance(trained, Mapping):
            tokens = torch.tensor(sorted({token for one in trained.values() for token in one}))
            layer.not_fed = not any(bool(torch.isin(value.cpu(), tokens).any()) for value in ids)


def without_tokens(layers: list[AdapterLayer]) -> list[AdapterLayer]:
    """Layers that the router sent no token to, while a twin got some: never called, or called once
    only, which moves B from zero and gives A nothing.

    A twin differs only in the last of two or more numbers of the path (layer, expert); a layer
    that is one of a plain stack and is never called has no such excuse.
    """
    called = {_twin_key(layer.path) for layer in layers if layer.calls}
    busiest = max((layer.calls for layer in layers), default=0)
    return [
        layer
        for layer in layers
        if layer.calls < min(2, busiest)
        and _twin_key(layer.path) != layer.path
        and _twin_key(layer.path) in called
        and not (layer.calls and layer.trained)
    ]


def _twin_key(path: str) -> str:
    parts = path.split(".")
    numbered = [index for index, part in enumerate(parts) if is_numbered(part)]
    if len(numbered) < 2:
        return path
    parts[numbered[-1]] = "*"
    return ".".join(parts)


def _layer_path(path: str, module: Any) -> str:
    clean = clean_path(path)
    parameter = getattr(module, "parameter_name", None)  # an adapter on a parameter, not a layer
    return f"{clean}.{parameter}" if isinstance(parameter, str) else clean
