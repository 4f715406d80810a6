"""Folders whose config.json not every release of transformers takes."""

from __future__ import annotations

import json
from typing import Any

from tests.quantized_folders import LLAMA
from tests.saved_adapters import new_folder


def _folder(name: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    folder = new_folder(name)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return str(folder), {}


def without_quantization() -> tuple[str, dict[str, Any]]:
    return _folder("null", quantization_config=None)


def with_unknown_layers() -> tuple[str, dict[str, Any]]:
    return _folder("layers", model_type="qwen3", layer_types=["full", "full"])
