"""What the installed PEFT did with an adapter config on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

from lora_doctor.results.error_report import ErrorReport


@dataclass(frozen=True)
class Unmatched:
    """An entry of a recipe key that names nothing in the model, or changes nothing there."""

    #: ``target_modules``, ``target_parameters`` or ``modules_to_save``, whose entry names nothing;
    #: ``rank_pattern``, ``alpha_pattern``, ``exclude_modules`` or ``layers_to_transform``, without
    #: whose entry the same adapters are put on; ``bias``, which trains none.
    key: str
    #: The entry.
    entry: str


@dataclass(frozen=True)
class LooseMatch:
    """An entry of ``modules_to_save`` that names more modules than those that are called so: PEFT
    compares the end of a path, without a dot before it."""

    #: The entry.
    entry: str
    #: Patterns of the modules that only end in the entry.
    patterns: tuple[str, ...]
    #: How many they are.
    modules: int
    #: Parameters in all of them.
    parameters: int
    #: Whether any of them holds other modules.
    blocks: bool
    #: Patterns of the adapted layers that are, or lie in, one of them.
    adapted: tuple[str, ...] = ()
    #: Patterns of the modules that are called so.
    meant: tuple[str, ...] = ()
    #: Parameters in all of ``meant``.
    meant_parameters: int = 0


@dataclass(frozen=True)
class Converted:
    """A target entry that PEFT itself turned into parameters."""

    #: The entry.
    entry: str
    #: Names of the parameters.
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.entry} -> {', '.join(self.parameters)}"


@dataclass(frozen=True)
class RenamedTensor:
    """A tensor that PEFT saves under one name and looks for under another."""

    #: Its name in the adapter file.
    saved: str
    #: The name that PEFT makes of it when it loads the file.
    looked_for: str


@dataclass(frozen=True)
class Injection:
    """What the installed PEFT did with this adapter config on the meta device."""

    #: Whether it came through.
    ok: bool
    #: PEFT class that ``get_peft_model`` made.
    wrapper: str | None = None
    #: What it raised.
    error: ErrorReport | None = None
    #: Entries that name nothing, or without which PEFT puts the same adapters on.
    unmatched: tuple[Unmatched, ...] = ()
    #: Target entries that PEFT itself turned into parameters.
    converted: tuple[Converted, ...] = ()
    #: The target modules that PEFT used in the end (its own default, or what ``all-linear``
    #: became).
    resolved_targets: tuple[str, ...] = ()
    #: Entries of ``modules_to_save`` that name more modules than those that are called so.
    loose_matches: tuple[LooseMatch, ...] = ()
    #: What PEFT warned of.
    warnings: tuple[str, ...] = ()
    #: Parameters of the adapters.
    adapter_parameters: int = 0
    #: Parameters that would train.
    trainable_parameters: int = 0
    #: Parameters of the model with its adapters.
    total_parameters: int = 0
    #: Parameters left trainable that are neither adapter nor ``modules_to_save``, as patterns.
    trainable_other: tuple[str, ...] = ()
    #: Parameters of the adapters that are trainable.
    trainable_adapter_parameters: int = 0
    #: How many parameters ``trainable_other`` stands for.
    trainable_other_parameters: int = 0
    #: Patterns of adapted layers whose adapters the installed PEFT would not find again in its own
    #: file.
    not_reloaded: tuple[str, ...] = ()
    #: One of their tensors; ``None`` when all are found.
    not_reloaded_example: RenamedTensor | None = None
    #: Why no adapter was made on the meta device, whose weights have no numbers: this kind looks at
    #: them. Which layers are adapted is then what PEFT's matcher says.
    not_made: str = ""
