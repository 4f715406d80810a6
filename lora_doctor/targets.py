"""What several rules about target modules need to read from a recipe and a structure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lora_doctor.evidence.structure import ModuleGroup, Structure
from lora_doctor.recipe import Recipe


def target_entries(recipe: Recipe) -> list[str]:
    """The entries of ``target_modules``; a regular expression is one entry."""
    targets = recipe.get("target_modules")
    if not targets:
        return []
    return [targets] if isinstance(targets, str) else list(targets)


def is_regex(recipe: Recipe) -> bool:
    """Whether PEFT takes ``target_modules`` as one regular expression for the whole path."""
    targets = recipe.get("target_modules")
    return isinstance(targets, str) and targets != "all-linear"


def offered_layers(structure: Structure) -> list[ModuleGroup]:
    """The layers a recipe usually trains: linear ones of the language tower, without head and
    router; of the whole model when nothing is left so."""
    from lora_doctor.evidence.propose import default_groups

    linear = [group for group in structure.groups if group.kind in ("linear", "conv1d")]
    return default_groups(structure) or linear


def means_mlp(name: str) -> bool:
    """Whether a target entry asks for a part of the MLP, by its name."""
    from lora_doctor.evidence.roles import jobs_of_name

    return bool(jobs_of_name(name) & {"gate", "up", "down"})


def cover_of(structure: Structure, entries: Iterable[str]) -> list[str]:
    """This model's own names for the roles that the entries stand for (Llama's ``q_proj`` in
    Phi-3 is ``qkv_proj``); all offered layers when no role can be told."""
    from lora_doctor.evidence.propose import role_cover

    names = [name for entry in entries for name in names_in(entry)]
    every = list(dict.fromkeys(group.leaf for group in offered_layers(structure)))
    return role_cover(structure, names) or every


def names_in(entry: str) -> list[str]:
    """Module names that an entry speaks of: itself, or the words at the end of a regular
    expression, such as ``q_proj`` and ``v_proj`` in ``.*self_attn\\.(q_proj|v_proj)``."""
    if re.fullmatch(r"[\w.]+", entry):
        return [entry.rpartition(".")[2]]
    return re.findall(r"[A-Za-z_]\w+", entry)


def quoted(names: Iterable[str], limit: int = 12) -> str:
    """Names for a sentence, the first ``limit`` of them."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
