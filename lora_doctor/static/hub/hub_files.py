"""Which files of a hub repository are worth fetching, and which ids and revisions can exist."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from lora_doctor.errors import InputError
from lora_doctor.limits import FETCHED_BYTES, FETCHED_FILES, RECIPE_BYTES
from lora_doctor.static.piece import shown

#: (pattern of names, most bytes), the most telling first.
Names = tuple[tuple[re.Pattern[str], int], ...]

_WANTED: Names = (
    (re.compile(r"config\.json"), 32 << 20),
    (re.compile(r"model\.safetensors\.index\.json"), 32 << 20),
    (re.compile(r"(?:[\w.-]+/){0,4}[\w.-]+\.py"), 2 << 20),
    (re.compile(r"(?:[\w.-]+/)?adapter_config\.json"), 1 << 20),
    (re.compile(r"[\w.-]*config\.json"), 5 << 20),
    (re.compile(r"tokenizer\.json"), 32 << 20),
    (re.compile(r"[\w.-]+\.(?:json|jinja|model|tiktoken)|(?:vocab|merges)\.txt"), 5 << 20),
)
#: Of a repository that is asked for as an adapter: its config may be longer than one beside a
#: model.
_OF_ADAPTER: Names = (
    (re.compile(r"adapter_config\.json"), RECIPE_BYTES),
    (re.compile(r"adapter_model\.safetensors\.index\.json"), 32 << 20),
)
# Longer names are more than file systems hold.
_LONGEST_NAME = 200


class AdapterInstead(Exception):
    """A repository that was asked for as a model holds an adapter: another question is asked then,
    so this is no error of the user's."""


@dataclass(frozen=True)
class Contents:
    """What a repository is asked for: the config that it has to have, its weights in one file, and
    the small files that are fetched."""

    config: str
    weights: str
    wanted: Names

    def instead(self, name: str, names: Mapping[str, object]) -> Exception:
        """What to raise for a repository of these names that has no such config."""
        if self is ADAPTER:
            return InputError(f"{name} {_no_adapter(names)}")
        kind = AdapterInstead if ADAPTER.config in names else InputError
        return kind(f"{name} {what_instead(names)}")


MODEL = Contents("config.json", "model.safetensors", _WANTED)
ADAPTER = Contents("adapter_config.json", "adapter_model.safetensors", _OF_ADAPTER)


def check_model_id(model_id: str) -> None:
    """Raise InputError, before any request, when `model_id` cannot be the id of a hub model."""
    name = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
    if (
        len(model_id) > 96
        or not re.fullmatch(rf"{name}(?:/{name})?", model_id)
        or "--" in model_id
        or ".." in model_id
        or model_id.endswith(".git")
    ):
        raise InputError(
            f"{shown(model_id)} is not a model id; give org/name, the path of a folder, or "
            "arch:NAME"
        )


def check_revision(revision: str | None) -> None:
    """Raise InputError when `revision` cannot be a branch, tag or commit."""
    if revision is None:
        return
    if (
        not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./+@-]{0,254}", revision)
        or ".." in revision
        or "" in revision.split("/")
    ):
        raise InputError(
            f"{shown(revision)} is not a revision; give a branch, a tag or a commit of the model"
        )


def choose(
    sizes: Mapping[str, int | None], wanted: Names = _WANTED
) -> tuple[list[str], dict[str, str]]:
    """Which of the files to fetch, the most telling first, and why the others are not fetched.

    `sizes` maps names, relative with `/`, to bytes; None where the server does not say.
    """
    ranked: list[tuple[int, str, int]] = []
    reasons: dict[str, str] = {}
    for name, size in sizes.items():
        rank = _rank(name, wanted)
        if rank is None or {".", ".."} & set(PurePosixPath(name).parts):
            reasons[name] = "not a small file that says something about the model"
        elif (size or 0) > wanted[rank][1]:
            reasons[name] = f"larger ({size:,} bytes) than what is fetched"
        else:
            ranked.append((rank, name, size or 0))
    chosen: list[str] = []
    total = 0
    for _, name, size in sorted(ranked):
        if len(chosen) >= FETCHED_FILES or total + size > FETCHED_BYTES:
            reasons[name] = "more files than are fetched"
            continue
        chosen.append(name)
        total += size
    return chosen, reasons


def most_bytes(name: str, wanted: Names = _WANTED) -> int:
    """The most bytes that a file of this name is fetched with; 0 for one that is not fetched."""
    rank = _rank(name, wanted)
    return 0 if rank is None else wanted[rank][1]


def _rank(name: str, wanted: Names) -> int | None:
    if len(name) > _LONGEST_NAME:
        return None
    return next((i for i, (names, _) in enumerate(wanted) if names.fullmatch(name)), None)


def what_instead(names: Mapping[str, object]) -> str:
    """What a repository without a config.json is, and what to do."""
    if "adapter_config.json" in names:
        return "is an adapter; give its base model as MODEL, and the adapter with --adapter"
    if any(name.endswith(".gguf") for name in names):
        return "holds GGUF files and no config.json; give the model that they were made from"
    return "has no config.json; give a model that transformers can load"


def _no_adapter(names: Mapping[str, object]) -> str:
    """What a repository without an adapter_config.json at its top is, and what to do."""
    folders = [name.rpartition("/")[0] for name in names if name.endswith("/adapter_config.json")]
    if folders:
        return (
            f"has its adapters in folders ({shown(', '.join(sorted(folders)[:4]))}); download one "
            "(hf download) and give its folder"
        )
    if "config.json" in names:
        return "holds a model and no adapter_config.json; give it as MODEL"
    return "has no adapter_config.json; it holds no adapter of PEFT's"
