"""Whether the installed PEFT can merge LoRA into the layers of a quantization, by its source.

Read, never imported: the layers of most quantizations need a GPU, or a package that is not here.
"""

from __future__ import annotations

import ast
import functools
from typing import Literal

from lora_doctor.static.installed.environment import installed_text, package_folder

_LAYER = "LoraLayer"
_MERGE = "merge"


@functools.cache
def lora_merges(method: str) -> tuple[Literal["yes", "no"], str] | None:
    """Whether PEFT's LoRA layer for this ``quant_method`` can be merged, and what is raised where
    it cannot; ``None`` where PEFT has no layer of its own for it.

    PEFT calls the file by the method, and a layer without ``merge`` inherits one that raises
    ``NotImplementedError``.
    """
    folder = package_folder("peft")
    if folder is None or not method.isidentifier():
        return None
    file = folder / "tuners" / "lora" / f"{method}.py"
    try:
        tree = ast.parse(installed_text(file))
    except SyntaxError:  # cut, or not Python of this version
        return None
    answers = [
        _of(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and _is_layer(node)
    ]
    return next((one for one in answers if one[0] == "yes"), next(iter(answers), None))


def _is_layer(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == _LAYER for base in node.bases)


def _of(layer: ast.ClassDef) -> tuple[Literal["yes", "no"], str]:
    merge = next(
        (node for node in layer.body if isinstance(node, ast.FunctionDef) and node.name == _MERGE),
        None,
    )
    if merge is None:
        return "no", f"NotImplementedError: {layer.name} has no merge of its own"
    body = [node for node in merge.body if not _is_text(node)]
    if body and isinstance(body[0], ast.Raise):
        return "no", _raised(body[0])
    return "yes", ""


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _raised(node: ast.Raise) -> str:
    if not isinstance(node.exc, ast.Call) or not isinstance(node.exc.func, ast.Name):
        return "an exception"
    said = node.exc.args[0] if node.exc.args else None
    text = said.value if isinstance(said, ast.Constant) and isinstance(said.value, str) else ""
    return f"{node.exc.func.id}: {text}" if text else node.exc.func.id
