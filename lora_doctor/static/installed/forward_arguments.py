"""Arguments that the forwards of a model type take, in the installed transformers: read, not
imported."""

from __future__ import annotations

import ast
import functools

from lora_doctor.static.installed.environment import installed_text, package_folder


@functools.cache
def forward_arguments(model_type: str) -> frozenset[str]:
    """Every argument that any ``forward`` in the files of this model type has; empty where there
    are none. A Trainer keeps no column that is not among them, whichever class is trained."""
    folder = package_folder("transformers")
    name = model_type.replace("-", "_")
    if folder is None or not name.isidentifier():
        return frozenset()
    found: set[str] = set()
    for path in sorted((folder / "models" / name).glob("modeling_*.py")):
        try:
            tree = ast.parse(installed_text(path))
        except (SyntaxError, ValueError):
            return frozenset()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "forward":
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                found.update(one.arg for one in arguments)
    return frozenset(found)
