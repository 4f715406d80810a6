"""What the rules about fused experts have in common: where they are, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_doctor.rule_api import quoted

if TYPE_CHECKING:
    from lora_doctor.rule_api import ModuleGroup, Structure


def fused_experts(structure: Structure) -> list[ModuleGroup]:
    """The parameters that hold the weights of all experts of a layer, three-dimensional."""
    return [
        group for group in structure.groups if group.kind == "parameter" and group.role == "experts"
    ]


def with_shapes(groups: Iterable[ModuleGroup]) -> str:
    """Such as ``4 x model.layers.*.mlp.experts.down_proj [8, 64, 32]``."""
    return quoted([f"{group.count} x {group.pattern} {list(group.shape)}" for group in groups], 4)
