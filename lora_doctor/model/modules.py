"""Every part of a model that carries weights, described without touching them.

Works on the meta device, on loaded weights, on quantized ones and on a model that PEFT has
already wrapped: an adapter layer is described as the layer that it wraps.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_doctor.model.module_path import is_numbered, pattern_of
from lora_doctor.results.structure import ModuleGroup, ModuleKind, Role, Tower


@dataclass
class Part:
    """A module with weights of its own, or a parameter of three dimensions or more.

    ``ancestors``: class names from the module's parent up to the model. ``own``: parameters that
    belong to it and to nothing inside it, for counting.
    """

    path: str
    module: Any
    kind: ModuleKind
    class_name: str
    shape: tuple[int, ...]
    ancestors: tuple[str, ...]
    own: tuple[Any, ...] = ()
    adapted: bool = False
    role: Role = "other"
    leaf: str = field(init=False)

    def __post_init__(self) -> None:
        self.leaf = self.path.rpartition(".")[2]


def unwrap(module: Any) -> Any:
    """The module that adapter layers, nested ones too, wrap; itself when it is none."""
    while hasattr(module, "base_layer") and hasattr(module, "adapter_layer_names"):
        module = module.base_layer
    while hasattr(module, "original_module") and hasattr(module, "modules_to_save"):
        module = module.original_module
    return module


def is_adapter_layer(module: Any) -> bool:
    """Whether PEFT made it: a layer that wraps another and holds adapter weights."""
    return hasattr(module, "base_layer") and hasattr(module, "adapter_layer_names")


def walk(model: Any) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """``(path, module, class names of its ancestors)`` with adapter layers seen through.

    A module that stands in two places is met once, at the first, as PEFT meets it.
    """
    seen: set[int] = set()
    stack: list[tuple[str, Any, tuple[str, ...]]] = [("", model, ())]
    while stack:
        path, module, ancestors = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module, ancestors
        inner = unwrap(module)
        seen.add(id(inner))
        above = (type(inner).__name__, *ancestors)
        children = [
            (f"{path}.{name}" if path else name, child, above)
            for name, child in inner._modules.items()
            if child is not None
        ]
        stack.extend(reversed(children))


def collect(model: Any) -> list[Part]:
    """The parts of the model, in the order of its modules."""
    parts = []
    for path, module, ancestors in walk(model):
        inner = unwrap(module)
        own = [(name, value) for name, value in inner._parameters.items() if value is not None]
        if not own and not _has_features(inner):
            continue
        kind = kind_of(inner)
        adapted = is_adapter_layer(module)
        wrapped_names = _wrapped_parameters(module)
        rest = []
        for name, value in own:
            if value.dim() >= 3 and kind == "other":
                parts.append(
                    Part(
                        f"{path}.{name}" if path else name,
                        inner,
                        "parameter",
                        type(inner).__name__,
                        tuple(value.shape),
                        ancestors,
                        (value,),
                        name in wrapped_names,
                    )
                )
            else:
                rest.append(value)
        if rest or _has_features(inner):
            parts.append(
                Part(
                    path,
                    inner,
                    kind,
                    type(inner).__name__,
                    shape_of(inner, kind),
                    ancestors,
                    tuple(rest),
                    adapted and not (wrapped_names and kind == "other"),
                )
            )
    return parts


def kind_of(module: Any) -> ModuleKind:
    """What a module is, by its class and by the weights that it has."""
    import torch
    from torch import nn

    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding) or hasattr(module, "num_embeddings"):
        return "embedding"
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        return "conv"
    if _is_transposed_linear(module):
        return "conv1d"
    name = type(module).__name__
    weight = module._parameters.get("weight")
    if _has_features(module):
        # Many of them in one weight (Aria's experts) is no layer to PEFT, but a parameter.
        return "other" if weight is not None and weight.dim() > 2 else "linear"
    if "norm" in name.lower() and (weight is None or weight.dim() == 1):
        return "norm"
    if weight is not None and weight.dim() == 1 and set(module._parameters) <= {"weight", "bias"}:
        return "norm"
    return "other"


def shape_of(module: Any, kind: ModuleKind) -> tuple[int, ...]:
    """The shape of the weight; for packed (quantized) ones the shape that they stand for."""
    if kind == "linear" and _has_features(module):
        return (int(module.out_features), int(module.in_features))
    weight = module._parameters.get("weight")
    if weight is None and kind == "conv":  # parametrized: the weight is made in the forward
        return (int(module.out_channels), int(module.in_channels), *module.kernel_size)
    if weight is None:
        weight = module._parameters.get("in_proj_weight")
    return tuple(int(size) for size in weight.shape) if weight is not None else ()


def assign_roles(
    parts: Sequence[Part], towers: Sequence[Tower], output_embeddings: Any = None
) -> None:
    """Set the role of every part: what it is first, what it is called last."""
    kind_of_tower = {tower.path: tower.kind for tower in towers}
    experts = expert_counts(parts)
    for part in parts:
        part.role = _role(part, kind_of_tower.get(tower_of(part.path, towers)), experts)
        if output_embeddings is not None and part.module is unwrap(output_embeddings):
            part.role = "head"


def tower_of(path: str, towers: Sequence[Tower]) -> str:
    """Path of the tower in which this path stands: the deepest that contains it."""
    inside = [
        tower.path
        for tower in towers
        if not tower.path or path == tower.path or path.startswith(tower.path + ".")
    ]
    return max(inside, key=len, default="")


def group(
    parts: Sequence[Part], towers: Sequence[Tower]
) -> tuple[tuple[ModuleGroup, ...], dict[str, int]]:
    """The parts grouped by pattern, class and shape, and which group each path is in.

    Shared parameters count once.
    """
    counted: set[int] = set()
    members: dict[tuple[Any, ...], list[Part]] = {}
    sizes: Counter[tuple[Any, ...]] = Counter()
    for part in parts:
        key = (pattern_of(part.path), part.class_name, part.kind, part.shape, part.role)
        members.setdefault(key, []).append(part)
        for parameter in part.own:
            if id(parameter) not in counted:
                counted.add(id(parameter))
                sizes[key] += elements(parameter, part)
    where = {part.path: index for index, found in enumerate(members.values()) for part in found}
    groups = tuple(
        ModuleGroup(
            pattern=key[0],
            leaf=found[0].leaf,
            class_name=key[1],
            kind=key[2],
            role=key[4],
            tower=tower_of(found[0].path, towers),
            count=len(found),
            shape=key[3],
            parameters=sizes[key],
            adapted=sum(part.adapted for part in found),
            examples=tuple(part.path for part in found[:3]),
        )
        for key, found in members.items()
    )
    return groups, where


def elements(parameter: Any, part: Part | None = None) -> int:
    """How many elements a parameter stands for; packed 4-bit weights hold two in a byte."""
    packed = type(parameter).__name__ == "Params4bit"
    if packed and part is not None and part.shape:
        count = 1
        for size in part.shape:
            count *= size
        return count
    if packed:
        return int(parameter.numel()) * 2 * int(parameter.element_size())
    return int(parameter.numel())


def expert_counts(parts: Sequence[Part]) -> Mapping[str, int]:
    """Path of the module that holds a mixture of experts, to the number of experts.

    Found by what they are: fused weights whose first dimension counts the experts, in a module or
    of a class that is called so, or a list of modules that is called experts.
    """
    counts: dict[str, int] = {}
    members: dict[str, set[str]] = {}
    for part in parts:
        components = part.path.split(".")
        for index, name in enumerate(components[:-1]):
            if "expert" in name and not name.startswith("shared"):
                owner = ".".join(components[:index])
                following = components[index + 1]
                if is_numbered(following):
                    members.setdefault(owner, set()).add(following)
                elif part.kind == "parameter":
                    counts[owner] = part.shape[0]
                break
        else:
            if _is_expert_class(part):
                counts[".".join(components[:-2])] = part.shape[0]
    counts.update({owner: len(found) for owner, found in members.items()})
    return counts


def _is_expert_class(part: Part) -> bool:
    """Whether it is a fused weight of a module that only its class calls experts
    (``JetMoeParallelExperts``)."""
    return part.kind == "parameter" and "Expert" in part.class_name


_ROUTER_NAME = re.compile(r"(^|_)router$")
_ROUTER_CLASS = re.compile(r"Router|TopKGat")
_ATTENTION_CLASS = re.compile(r"(Self|Cross)?Att(entio)?n|MultiheadAttention", re.IGNORECASE)
_ATTENTION_NAME = re.compile(r"(^|_)att(entio)?n($|_|\d)|attention|self_?attn", re.IGNORECASE)
_MLP_CLASS = re.compile(r"MLP|FeedForward|FFN?\b|FFN|Ffn|DenseActDense|DenseGatedAct|Mlp")
_MLP_NAME = re.compile(
    r"^(mlp|ffn?(_output)?|feed_forward\w*|fc\d?|fc_(in|out)|lin[12]|dense_h_to_4h|dense_4h_to_h|c_fc|"
    r"intermediate(_dense)?|wi(_\d)?|wo|(gate|up|down|gate_up)_proj|w[123]|DenseReluDense)$"
)


def _role(part: Part, tower_kind: str | None, experts: Mapping[str, int]) -> Role:
    if part.kind == "embedding":
        return "embedding"
    if tower_kind == "head":
        return "head"
    if tower_kind == "projector":
        return "projector"
    if part.kind in ("norm", "conv"):
        return "other"
    if _is_called_router(part):
        return "router"
    if _is_expert(part, experts):
        return "experts"
    if _has_a_row_per_expert(part, experts):
        return "router"
    return _block_role(part)


def _is_called_router(part: Part) -> bool:
    holder = part.ancestors[0] if part.ancestors else ""
    return part.kind != "parameter" and (
        any(_ROUTER_NAME.search(name) for name in part.path.split(".")[-2:])
        or _ROUTER_CLASS.search(f"{part.class_name} {holder}") is not None
    )


def _is_expert(part: Part, experts: Mapping[str, int]) -> bool:
    """Whether it is one expert of a mixture, or the fused weight of all of them."""
    components = part.path.split(".")
    # Shared experts that are fused are out of reach of target_modules as the others are.
    fused = part.kind == "parameter"
    expert = next(
        (
            index
            for index, name in enumerate(components[:-1])
            if "expert" in name and (fused or not name.startswith("shared"))
        ),
        None,
    )
    in_mixture = expert is not None and ".".join(components[:expert]) in experts
    return in_mixture or _is_expert_class(part)


def _has_a_row_per_expert(part: Part, experts: Mapping[str, int]) -> bool:
    """Whether it gives as many outputs as the mixture that it stands in has experts."""
    components = part.path.split(".")
    owner = ".".join(components[:-1])
    count = experts.get(owner, experts.get(".".join(components[:-2])))
    # A shared expert may be as wide as there are others (Qwen3-Next: 512).
    shared = any(name.startswith("shared") for name in components[:-1])
    return count is not None and bool(part.shape) and part.shape[0] == count and not shared


def _block_role(part: Part) -> Role:
    """Attention or MLP, by the names and classes around the part.

    The nearest ancestor decides: BERT's `attention.output.dense` is attention, `output.dense` is
    not.
    """
    components = part.path.split(".")
    names = list(reversed(components))
    for name, cls in zip(names, ("", *part.ancestors), strict=False):
        if _MLP_NAME.match(name) or _MLP_CLASS.search(cls):
            return "mlp"
        if _ATTENTION_NAME.search(name) or _ATTENTION_CLASS.search(cls):
            return "attention"
    if part.class_name == "MultiheadAttention":
        return "attention"
    if len(components) > 1 and part.kind in ("linear", "conv1d") and _inside_layer(components):
        return _plain_block_role(part)
    return "other"


def _plain_block_role(part: Part) -> Role:
    """The role of a linear layer directly in a block: widening or narrowing makes it an MLP."""
    class_name = part.ancestors[0] if part.ancestors else ""
    if re.search(r"Intermediate|Output", class_name) and part.shape[0] != part.shape[1]:
        return "mlp"
    return "other"


def _inside_layer(components: Sequence[str]) -> bool:
    return any(name.isdigit() for name in components)


def _is_transposed_linear(module: Any) -> bool:
    """GPT-2's ``Conv1D``: a linear layer whose weight is stored as (in, out)."""
    weight = module._parameters.get("weight")
    return hasattr(module, "nf") and weight is not None and weight.dim() == 2


def _has_features(module: Any) -> bool:
    features = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(value, int) for value in features)


def _wrapped_parameters(module: Any) -> set[str]:
    """Names of the parameters that PEFT adapts directly (nested ``ParamWrapper`` layers)."""
    names = set()
    while is_adapter_layer(module):
        name = getattr(module, "parameter_name", None)
        if name:
            names.add(name)
        module = module.base_layer
    return names
