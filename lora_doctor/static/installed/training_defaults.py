"""What the installed transformers does where the Trainer's arguments say nothing: read, not
imported."""

from __future__ import annotations

import functools
import re

from lora_doctor.static.installed.environment import installed_text, package_folder

_VERSION = re.compile(r"fsdp_config\.get\(\s*[\"']version[\"'],\s*(\d)\s*\)")
_REENTRANT = re.compile(
    r"(?:gradient|activation)_checkpointing_kwargs = \{[\"']use_reentrant[\"']: (True|False)\}"
)
_UNUSED = re.compile(
    r"PreTrainedModel\):.{0,400}?else:\s+(?:find_unused|kwargs\[.find_unused_parameters.\]) = True",
    re.DOTALL,
)


def _text(name: str) -> str:
    """A file of transformers; empty where there is none."""
    folder = package_folder("transformers")
    path = folder / name if folder is not None else None
    return installed_text(path) if path is not None and path.is_file() else ""


@functools.cache
def default_fsdp_version() -> int:
    """FSDP's version of ``TrainingArguments(fsdp=...)``: 1 in releases that do not choose."""
    found = _VERSION.search(_text("training_args.py"))
    return int(found[1]) if found else 1


@functools.cache
def checkpoints_reentrantly() -> bool:
    """Whether gradient checkpointing is reentrant unless the user says otherwise. Releases that
    hand torch nothing get its default, which is reentrant."""
    text = _text("modeling_utils.py")
    found = _REENTRANT.search(text)
    return bool(text) and (found is None or found[1] == "True")


@functools.cache
def looks_for_unused_parameters() -> bool:
    """Whether the Trainer has DDP look for unused parameters in every model that is none of
    transformers' own classes, as PEFT's wrapper is, unless the user says otherwise."""
    return bool(_UNUSED.search(_text("trainer.py")))
