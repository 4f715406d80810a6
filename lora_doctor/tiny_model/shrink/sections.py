"""Numbers that stand in the code: a config says nothing, and the code takes `[22, 22, 20]`.

Rotary sections add up to half of the head dimension of the published model. In the small config the
same proportions are written down at the small sum; so are token ids inside the small vocabulary.
"""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

from lora_doctor.tiny_model.config_roles import Node, is_numbers, spread, tree
from lora_doctor.tiny_model.shrink.config_gaps import running_functions
from lora_doctor.tiny_model.shrink.sizes import Sizes


def sections_of_code(sizes: Sizes, config: Any, error: BaseException) -> list[Sizes]:
    """The choices with the sections written into the configs whose code takes its own.

    Args:
        config: the small one that was built from.
        error: what its model's code raised, with its traceback.
    """
    root = tree(config)
    overrides = dict(sizes.overrides)
    for function in running_functions(error):
        for entry, name, parts in _taken_by_default(function):
            for node in root.walk():
                rope, half = node.values.get(entry), half_of_head(node)
                if half and isinstance(rope, dict) and name not in rope and sum(parts) != half:
                    overrides[node.where(entry)] = {**rope, name: spread(half, parts)}
    if overrides == dict(sizes.overrides):
        return []
    return [sizes.with_overrides(overrides, "repaired: sections of rotary embeddings")]


def required_sections(root: Node, text: str) -> dict[str, Any]:
    """As many sections as an error requires: "expects at least 3 multimodal RoPE axes"."""
    required = re.search(r"at least (\d+) (?:multimodal |m-?)ro?pe (?:axes|sections)", text, re.I)
    found: dict[str, Any] = {}
    for node in root.walk():
        half = half_of_head(node)
        if required is None or not half or re.search(r"vision|visual|audio", node.path):
            continue
        rope = node.values.get("rope_parameters")
        if isinstance(rope, dict) and not rope.get("mrope_section"):
            parts = spread(half, [1] * int(required[1]))
            found[node.where("rope_parameters")] = {**rope, "mrope_section": parts}
    return found


def rope_sections(root: Node, text: str) -> dict[str, Any]:
    """Sections that stand in the code, not in the config, written into it at the right sum."""
    match = re.search(r"sum exactly to (\d+) .*?split_sizes=\[([\d, ]+)\]", text)
    if not match:
        return {}
    total, parts = int(match[1]), [int(n) for n in match[2].split(",")]
    found: dict[str, Any] = {}
    if len(parts) > 3 and parts[: len(parts) // 2] == parts[len(parts) // 2 :]:
        parts, total = parts[: len(parts) // 2], total // 2  # the code doubles the list
    for node in root.walk():
        if re.search(r"vision|visual|audio", node.path) or "num_attention_heads" not in node.values:
            continue
        for key in ("rope_parameters", "rope_scaling"):
            rope = node.values.get(key)
            if isinstance(rope, dict) or (rope is None and key == "rope_parameters"):
                found[node.where(key)] = {**(rope or {}), "mrope_section": spread(total, parts)}
    return found


def ids_of_code(root: Node, model: Any, text: str) -> dict[str, Any]:
    """Small ids for those that a class takes where its config has none ("index 10784 is out of
    bounds", from `getattr(config, "yes_token_index", 10_784)` in ShieldGemma 2)."""
    match = re.search(r"index (\d+) is out of bounds for dimension \d+ with size (\d+)", text)
    try:
        source = inspect.getsource(type(model).__init__) if match else ""
    except (OSError, TypeError):
        return {}
    taken = re.findall(r"getattr\(config, [\"'](\w+)[\"'], (\d[\d_]*)\)", source)
    if match is None or int(match[1]) not in [int(number) for _, number in taken]:
        return {}
    outside = [name for name, number in taken if int(number) >= int(match[2])]
    return {root.where(name): 40 + index for index, name in enumerate(outside)}


def half_of_head(node: Node) -> int:
    """Half of the dimensions of one attention head; 0 where a config has no heads."""
    width, heads = node.values.get("hidden_size"), node.values.get("num_attention_heads")
    if not isinstance(width, int) or not isinstance(heads, int) or heads <= 0:
        return 0
    return int(node.values.get("head_dim") or width // heads) // 2


def _taken_by_default(function: ast.FunctionDef) -> list[tuple[str, str, list[int]]]:
    """The rotary entry, the name in it and the numbers of `...rope_x.get("y_section", [1, 2])`."""
    found = []
    for node in ast.walk(function):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        holder = node.func.value
        if node.func.attr != "get" or len(node.args) != 2 or not isinstance(holder, ast.Attribute):
            continue
        try:
            name, parts = (ast.literal_eval(argument) for argument in node.args)
        except ValueError:
            continue
        if "rope" in holder.attr and str(name).endswith("section") and is_numbers(parts):
            found.append((holder.attr, name, list(parts)))
    return found
