"""What a program sets by name when it loads its model: the config takes what it has."""

from __future__ import annotations

from typing import Any

from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.program.values import NotPlainError, constant

#: How and from where something is loaded; some of it is a recipe's.
_ASIDE = frozenset(
    {"torch_dtype", "dtype", "attn_implementation", "quantization_config", "trust_remote_code",
     "revision", "token", "use_auth_token", "cache_dir", "subfolder", "device_map", "max_memory",
     "low_cpu_mem_usage", "ignore_mismatched_sizes", "load_in_4bit", "load_in_8bit", "use_cache",
     "local_files_only", "force_download", "return_dict", "offload_folder"}
)  # fmt: skip


def loading_entries(setup: Setup) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values, and the names of those that the text does not tell."""
    loader = setup.roles.loader
    known: dict[str, Any] = {}
    unknown = []
    for name, argument in (loader.keywords if loader is not None else {}).items():
        if name in _ASIDE:
            continue
        try:
            known[name] = constant(argument.value)
        except NotPlainError:
            unknown.append(name)
    if loader is not None and loader.open is not None:
        unknown.append("config")
    return known, tuple(unknown)
