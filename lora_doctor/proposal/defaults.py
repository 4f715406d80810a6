"""What a careful engineer would take for the keys of a recipe that nobody has set.

Pure: reads a :class:`Structure`. Whether PEFT agrees is tried by ``meta.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from lora_doctor.proposal.roles import jobs_of_group, jobs_of_name

if TYPE_CHECKING:
    from lora_doctor.proposal.roles import Job
    from lora_doctor.results.structure import ModuleGroup, Structure

RANK = 16
ALPHA = 32
DROPOUT = 0.05
#: Arguments that carry data. A forward that does not name one of them and gets it anyway fails,
#: or hands it on beside its own value of the same name.
_DATA = frozenset(
    {
        "input_ids", "attention_mask", "inputs_embeds", "labels", "start_positions",
        "end_positions", "decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds",
    }
)  # fmt: skip


def default_recipe(
    structure: Structure, open_keys: Collection[str], parameter_targets: bool
) -> dict[str, Any]:
    """Values for the open keys, ``target_modules`` and ``target_parameters`` included.

    ``parameter_targets``: whether the installed PEFT adapts parameters (``target_parameters``).
    ``task_type`` is what the class serves; :func:`wrapper_fits` says whether it can be kept.
    """
    values: dict[str, Any] = {
        "task_type": task_type(structure),
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": DROPOUT,
        "dtype": structure.native_dtype or "auto",
    }
    forms = target_forms(structure)
    if forms:
        values["target_modules"] = forms[0]
    fused = fused_experts(structure)
    if fused and parameter_targets and "target_modules" in open_keys:
        values["target_parameters"] = fused
        values["lora_dropout"] = 0
    return {key: value for key, value in values.items() if key in open_keys}


def task_type(structure: Structure) -> str | None:
    """The PEFT task type that this class serves, by transformers' own mapping of heads."""
    for head in structure.head_classes:
        if head.class_name == structure.model_class:
            if head.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
                return _generates(structure)
            return head.task_type
    return _generates(structure) if structure.can_generate else None


def _generates(structure: Structure) -> str:
    return "SEQ_2_SEQ_LM" if structure.is_encoder_decoder else "CAUSAL_LM"


def wrapper_fits(structure: Structure, sends: Iterable[str]) -> bool:
    """Whether a forward takes what a wrapper sends.

    A name that only ``**kwargs`` would take counts as taken unless it carries data: those are
    passed on to inner models, where they meet the value that the forward itself passes.
    """
    named = {item.name for item in structure.forward_parameters}
    return all(
        name in named or (structure.forward_takes_any and name not in _DATA) for name in sends
    )


def default_groups(structure: Structure) -> list[ModuleGroup]:
    """The layers that the default recipe trains: the linear ones in the blocks of the language
    tower, or of the towers that there are when none is for language. Convolutions where no layer
    is linear."""
    inside: list[ModuleGroup] = []
    repeated: list[ModuleGroup] = []
    for kinds in (("linear", "conv1d"), ("conv",)):
        found = _layers(structure, kinds)
        # A list of bare layers (projections of Gemma 3n's streams) is no stack of blocks.
        blocks = [group for group in found if "*" in group.pattern.split(".")[:-1]]
        repeated = blocks or [group for group in found if "*" in group.pattern.split(".")]
        inside = found if repeated else inside or found
        if repeated:
            break
    leaves = {(group.tower, group.leaf) for group in repeated or inside}
    return _with_room([group for group in inside if (group.tower, group.leaf) in leaves])


def _with_room(groups: list[ModuleGroup]) -> list[ModuleGroup]:
    """The layers in which an update of our rank is one of low rank: without gates of one or a few
    outputs in a wide model, where the adapter would be larger than the layer."""
    rooms = [_largest_rank(group) for group in groups]
    if max(rooms, default=0) < 8 * RANK:  # a narrow model has narrow layers throughout
        return groups
    return [group for group, room in zip(groups, rooms, strict=True) if room >= RANK]


def _largest_rank(group: ModuleGroup) -> int:
    """The rank that no update of this layer's weight can exceed."""
    first, *rest = group.shape or (0,)
    return min(first, prod(rest))


def _layers(structure: Structure, kinds: Collection[str]) -> list[ModuleGroup]:
    towers = _trained_towers(structure)
    return [
        group
        for group in structure.groups
        if group.tower in towers
        and group.kind in kinds
        and group.role not in ("head", "router", "embedding", "projector")
        and not _is_copy(group, structure)
    ]


def _is_copy(group: ModuleGroup, structure: Structure) -> bool:
    """Whether all of its weights are those of a like group in another tower, where they are trained
    (the decoder of DiffusionGemma has its encoder's)."""
    return not group.parameters and any(
        other.parameters
        and other.tower != group.tower
        and (other.leaf, other.class_name, other.count, other.shape)
        == (group.leaf, group.class_name, group.count, group.shape)
        for other in structure.groups
    )


def fused_experts(structure: Structure) -> list[str]:
    """Fused expert weights of the trained towers, as suffixes for ``target_parameters``."""
    towers = _trained_towers(structure)
    names = {
        suffix(group.pattern)
        for group in structure.groups
        if group.kind == "parameter"
        and group.role == "experts"
        and group.tower in towers
        and not _is_copy(group, structure)
    }
    return sorted(names)


def bare_weights(structure: Structure) -> list[ModuleGroup]:
    """Weights of attention and MLP in the trained towers that belong to no layer which PEFT knows,
    fused experts left out."""
    towers = _trained_towers(structure)
    return [
        group
        for group in structure.groups
        if group.kind in ("parameter", "other")
        and group.role in ("attention", "mlp")
        and group.tower in towers
    ]


def suffix(pattern: str) -> str:
    """The part of a pattern behind its last number, the shortest form that entries may have."""
    return pattern.rpartition("*.")[2]


def target_forms(structure: Structure) -> list[str | list[str]]:
    """Ways to name the default layers for PEFT, the plainest first, each naming only them.

    A list of leaf names where they are unambiguous, else a regular expression that stays in the
    tower (a string is matched as a whole path by every PEFT).
    """
    wanted = default_groups(structure)
    return name_groups(structure, wanted)


def name_groups(structure: Structure, wanted: Sequence[ModuleGroup]) -> list[str | list[str]]:
    """``target_modules`` values that name exactly these groups."""
    if not wanted:
        return []
    leaves = list(dict.fromkeys(group.leaf for group in wanted))
    chosen = set(wanted)
    others = [_as_module(group) for group in structure.groups if group not in chosen]
    forms: list[str | list[str]] = []
    words = [leaf for leaf in leaves if not leaf.isdigit()]
    if words == leaves and not any(group.leaf in leaves for group in others):
        forms.append(leaves)
    starts = list(dict.fromkeys(_start(group.pattern) for group in wanted))
    names = "|".join(re.escape(leaf) for leaf in words)
    start = "|".join(re.escape(name) for name in starts)
    start = f"(?:{start})" if len(starts) > 1 else start
    short = rf"{start}\..*\.(?:{names})" if start else rf".*\.(?:{names})"
    if _selects(short, wanted, others):
        forms.append(short)
    forms.append("|".join(dict.fromkeys(_exact(group, wanted, others) for group in wanted)))
    return forms


def _as_module(group: ModuleGroup) -> ModuleGroup:
    """What entries of ``target_modules`` are compared with: of a parameter, the module that has it
    (Granite's ``block_sparse_moe.input_linear``)."""
    if group.kind != "parameter":
        return group
    pattern = group.pattern.rpartition(".")[0]
    return replace(
        group,
        pattern=pattern,
        leaf=pattern.rpartition(".")[2],
        examples=tuple(path.rpartition(".")[0] for path in group.examples),
    )


def _exact(group: ModuleGroup, wanted: Sequence[ModuleGroup], others: Sequence[ModuleGroup]) -> str:
    """A regular expression for one group; layers of a sequence are named by their own numbers, and
    so are those in a sequence of blocks that other layers go by the same names in (RegNet's
    convolutions, the second of three in groups)."""
    pattern = group.pattern
    if group.leaf.isdigit():
        leaves = sorted({path.rpartition(".")[2] for path in group.examples})
        start = re.escape(pattern.rpartition(".")[0]).replace(r"\*", r"\d+")
        return rf"{start}\.(?:{'|'.join(leaves)})"
    ours, theirs = (
        [path.split(".") for one in groups if one.pattern == pattern for path in one.examples]
        for groups in (wanted, others)
    )
    names = [re.escape(name).replace(r"\*", r"\d+") for name in pattern.split(".")]
    places = [place for place, name in enumerate(pattern.split(".")) if name == "*"]
    for place in reversed(places if theirs else []):
        numbers = {path[place] for path in ours}
        # Examples go on to a second block only when they have named all of the first.
        whole = any(
            len({tuple(path.split(".")[:place]) for path in one.examples}) > 1
            for one in wanted
            if one.pattern == pattern
        )
        if whole and numbers.isdisjoint(path[place] for path in theirs):
            names[place] = f"(?:{'|'.join(sorted(numbers, key=int))})"
            break
    return r"\.".join(names)


def role_cover(structure: Structure, entries: Sequence[str]) -> list[str]:
    """Names of this model's layers that do the jobs which the entries ask for.

    Llama's seven names on a model with fused projections give ``qkv_proj``, ``o_proj``,
    ``gate_up_proj``, ``down_proj``. Jobs are read off the names on both sides, and off the shapes
    on the model's. Empty when no entry has a job that can be read, or nothing here does it.
    """
    wanted: set[Job] = set()
    for entry in entries:
        wanted |= jobs_of_name(entry)
    if not wanted:
        return []
    cover: list[str] = []
    for group in default_groups(structure):
        if jobs_of_group(group, structure) & wanted and group.leaf not in cover:
            cover.append(group.leaf)
    return cover


def _trained_towers(structure: Structure) -> set[str]:
    def of(*kinds: str) -> set[str]:
        return {tower.path for tower in structure.towers if tower.kind in kinds}

    return of("language") or of("vision", "audio") or of("other")


def _start(pattern: str) -> str:
    """The path before the first number."""
    names = pattern.split(".")
    return ".".join(names[: names.index("*")]) if "*" in names else ".".join(names[:-1])


def _selects(regex: str, wanted: Sequence[ModuleGroup], others: Sequence[ModuleGroup]) -> bool:
    compiled = re.compile(regex)
    inside = all(compiled.fullmatch(path) for group in wanted for path in group.examples)
    return inside and not any(
        compiled.fullmatch(path) for group in others for path in group.examples
    )
