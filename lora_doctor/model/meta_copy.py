"""A model without its weights: a copy on the meta device in which equal layers stand once or twice.

126 layers that are built alike are adapted alike, so two of them tell what PEFT does with all. The
copy keeps the real names (``layers.0``, ``layers.1``), hooks, ties and ``requires_grad``; the
original is not touched.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.text import single_line

#: What a name means to the adapter config; layers are alike only where this is equal too.
Meaning = Callable[[str], object]


@dataclass(frozen=True)
class MetaCopy:
    """``model``: the copy. ``repeats``: path of a kept layer to the number it stands for."""

    model: Any
    repeats: Mapping[str, int]

    def times(self, path: str) -> int:
        """How many modules (or parameters) of the original this path of the copy stands for."""
        names = path.replace(".base_layer", "").split(".")
        factor = 1
        for index in range(1, len(names)):
            factor *= self.repeats.get(".".join(names[: index + 1]), 1)
        return factor


def meta_copy(model: Any, meaning: Meaning | None = None) -> MetaCopy:
    """Copy the structure of a model to the meta device.

    ``meaning`` says what the adapter config makes of a module's or parameter's path; without it
    every layer is kept.

    Raises:
        EvidenceError: an attribute of a module cannot be copied.
    """
    memo: dict[int, Any] = {}
    _meta_tensors(model, memo)
    repeats: dict[str, int] = {}
    try:
        if meaning is not None:
            _Thinning(model, meaning, memo, repeats).run()
        return MetaCopy(copy.deepcopy(model, memo), repeats)
    except Exception as error:
        text = single_line(str(error))
        raise EvidenceError(
            f"the structure of {type(model).__name__} cannot be copied: "
            f"{type(error).__name__}: {text}"
        ) from error


class _Thinning:
    """Finds equal members of module lists and leaves the surplus out of the copy.

    Two members of each kind stay: a first layer may be named by itself, and the second shows that
    a further one is treated alike.
    """

    def __init__(
        self, model: Any, meaning: Meaning, memo: dict[int, Any], repeats: dict[str, int]
    ) -> None:
        self.model = model
        self.meaning = meaning
        self.memo = memo
        self.repeats = repeats
        self.numbers: dict[Any, int] = {}
        self.seen: set[int] = set()
        owners = Counter(
            id(value)
            for module in model.modules()
            for value in module._parameters.values()
            if value is not None
        )
        self.shared = {key for key, count in owners.items() if count > 1}

    def run(self) -> None:
        self._signature("", self.model)

    def _signature(self, path: str, module: Any) -> int:
        """A number that equal subtrees share. Weights that are shared make a subtree unique."""
        if id(module) in self.seen:
            return self._number(("again", id(module)))
        self.seen.add(id(module))
        own: list[object] = []
        for name, value in module._parameters.items():
            full = f"{path}.{name}" if path else name
            if value is None:
                own.append((name, None))
            elif id(value) in self.shared:
                own.append((name, id(value)))
            else:
                looks = (type(value), tuple(value.shape), value.dtype, value.requires_grad)
                own.append((name, looks, self.meaning(full)))
        children = [
            (name, child, self._signature(f"{path}.{name}" if path else name, child))
            for name, child in module._modules.items()
            if child is not None
        ]
        if type(module).__name__ == "ModuleList":
            self._thin(path, module, children)
        features = tuple(
            repr(vars(module).get(name)) for name in ("in_features", "out_features", "groups")
        )
        return self._number(
            (
                type(module),
                features,
                self.meaning(path) if path else None,
                tuple(own),
                tuple((name, number) for name, _, number in children),
            )
        )

    def _thin(self, path: str, module: Any, children: list[tuple[str, Any, int]]) -> None:
        groups: dict[int, list[tuple[str, Any]]] = {}
        for name, child, number in children:
            groups.setdefault(number, []).append((name, child))
        kept: dict[str, Any] = {}
        for name, child, number in children:
            members = groups[number]
            if any(name == member for member, _ in members[:2]):
                kept[name] = child
        for members in groups.values():
            if len(members) > 2:
                second = members[1][0]
                self.repeats[f"{path}.{second}" if path else second] = len(members) - 1
        if len(kept) < len(children):
            copies = {name: copy.deepcopy(child, self.memo) for name, child in kept.items()}
            self.memo[id(module._modules)] = type(module._modules)(copies)

    def _number(self, signature: Any) -> int:
        return self.numbers.setdefault(signature, len(self.numbers))


def _meta_tensors(model: Any, memo: dict[int, Any]) -> None:
    """Let the copy find a meta tensor wherever the original holds a tensor."""
    import torch

    for module in model.modules():
        held = [*module._parameters.values(), *module._buffers.values()]
        held += [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
        for value in held:
            if value is not None and id(value) not in memo:
                memo[id(value)] = _meta(value)


def _meta(value: Any) -> Any:
    """The tensor without its numbers; quantized parameter classes keep class and attributes."""
    import torch

    empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, torch.nn.Parameter) or type(value) is not torch.Tensor:
        new = torch.Tensor._make_subclass(type(value), empty, value.requires_grad)
        new.__dict__.update(value.__dict__)
        return new
    return empty.requires_grad_(value.requires_grad)
