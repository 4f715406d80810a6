"""What several rules about target modules need to read from a recipe and a structure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from lora_doctor.errors import EvidenceError
from lora_doctor.model.module_path import pattern_of
from lora_doctor.recipe.edit import Edit
from lora_doctor.static.installed.environment import adapter_config_fields

if TYPE_CHECKING:
    from lora_doctor.proposal.roles import Job
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.structure import ModuleGroup, Structure, Tower


def require_lora(recipe: Recipe) -> None:
    """Raises EvidenceError for a recipe of another method: a rule about LoRA's targets has nothing
    to say about it, which is not the same as "passed"."""
    if recipe.peft_type != "LORA":
        raise EvidenceError(f"the recipe is {recipe.peft_type}, and this rule is about LoRA")


def require_named_layers(recipe: Recipe) -> None:
    """Raises EvidenceError for a kind of adapter that is put on no layers by their names, which the
    config classes of the installed PEFT tell by their fields."""
    fields = adapter_config_fields(recipe.peft_type)
    if fields is not None and "target_modules" not in fields:
        raise EvidenceError(f"the recipe is {recipe.peft_type}, which is put on no layers")


def target_entries(recipe: Recipe) -> list[str]:
    """The entries of ``target_modules``; a regular expression is one entry."""
    targets = recipe.get("target_modules")
    if not targets:
        return []
    return [targets] if isinstance(targets, str) else list(targets)


def unmatched_entries(structure: Structure, key: str) -> list[str]:
    """The entries of this recipe key that name nothing in the model."""
    return [item.entry for item in structure.injection.unmatched if item.key == key]


def unmatched_targets(structure: Structure) -> list[str]:
    """The entries of ``target_modules`` that name nothing. Not those that stand for an MLP whose
    experts are fused parameters without adapter: what they ask for is there, and ``LD204`` tells
    how to adapt it."""
    fused = any(
        group.kind == "parameter" and group.role == "experts" and not group.adapted
        for group in structure.groups
    )
    entries = unmatched_entries(structure, "target_modules")
    return [entry for entry in entries if not (fused and means_mlp(entry))]


def offered_layers(structure: Structure) -> list[ModuleGroup]:
    """The layers a recipe usually trains: linear ones of the language tower, without head and
    router; of the whole model when nothing is left so."""
    from lora_doctor.proposal.defaults import default_groups

    linear = [group for group in structure.groups if group.kind in ("linear", "conv1d")]
    return default_groups(structure) or linear


def side_towers(structure: Structure) -> list[Tower]:
    """The vision and audio towers that serve a language model: a recipe for language does not mean
    them. None in an encoder-decoder without a projector (speech to text) and in a dual encoder
    (CLIP's kind): those are one model, and meant as a whole."""
    kinds = {tower.kind for tower in structure.towers}
    # Not by has_prepare_inputs: every model had that method before transformers 4.50. Another head
    # on the same model, such as a classifier on a vision language model, counts as well.
    generates = structure.can_generate or any(
        item.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM") for item in structure.head_classes
    )
    if "language" not in kinds or not generates:
        return []
    if structure.is_encoder_decoder and "projector" not in kinds:
        return []
    return [tower for tower in structure.towers if tower.kind in ("vision", "audio")]


def naming(structure: Structure, names: Iterable[str], within: bool = True) -> str | list[str]:
    """``target_modules`` for these layers: their names, or a regular expression where names will
    not do: a layer of a sequence is called ``0``, like the blocks of the model, or (``within``) a
    side tower has the same names and is not meant."""
    from lora_doctor.proposal.defaults import name_groups

    names = list(names)
    sides = {tower.path for tower in side_towers(structure)} if within else set()
    strays = any(group.tower in sides and group.leaf in names for group in structure.groups)
    if not strays and not any(name.isdigit() for name in names):
        return names
    offered = [group for group in offered_layers(structure) if group.leaf in names]
    known = {group.leaf for group in offered}
    others = [
        group
        for group in structure.groups
        if group.leaf in names
        and group.leaf not in known
        and group.kind in ("linear", "conv1d", "embedding")
        and group.tower not in sides
    ]
    forms = name_groups(structure, [*offered, *others])
    return forms[0] if forms else names


def targets_without(
    structure: Structure, recipe: Recipe, patterns: Collection[str]
) -> str | list[str] | None:
    """The recipe's ``target_modules`` without the layers of these groups: the entries that are
    left where that will do, else the other layers by their paths. ``None`` when none are left."""
    from lora_doctor.proposal.defaults import name_groups

    adapted = [group for group in structure.groups if group.adapted and group.kind != "parameter"]
    out = [group for group in adapted if group.pattern in patterns]
    kept = [group for group in adapted if group.pattern not in patterns]
    if not kept:
        return None
    own = recipe.get("target_modules")
    unused = {group.leaf for group in out} - {group.leaf for group in kept}
    if own and own != "all-linear" and not out:
        return own  # type: ignore[no-any-return]
    if isinstance(own, list) and unused.issuperset(group.leaf for group in out):
        return [entry for entry in own if entry.rpartition(".")[2] not in unused]
    return name_groups(structure, kept)[0]


def edits_without(
    structure: Structure, recipe: Recipe, patterns: Collection[str]
) -> tuple[Edit, ...]:
    """How to leave these groups out and nothing else; empty where no entry can say it.

    ``exclude_modules`` beside ``all-linear``, where this PEFT has it. PEFT 0.21 takes
    ``all-linear`` and some names for parameters, too (the weights of experts), which a list of the
    modules that are left would drop.
    """
    from lora_doctor.proposal.defaults import suffix
    from lora_doctor.static.installed.environment import lora_config_fields

    own, excluded = recipe.get("target_modules"), recipe.get("exclude_modules") or []
    converted = any(group.adapted and group.kind == "parameter" for group in structure.groups)
    others = [group for group in structure.groups if group.pattern not in patterns]
    names = sorted(suffix(pattern) for pattern in patterns)
    alone = not any(f".{group.pattern}".endswith(f".{name}") for group in others for name in names)
    knows = "exclude_modules" in (lora_config_fields() or ())
    whole = own == "all-linear" or (converted and isinstance(own, str))
    if whole and not recipe.get("target_parameters"):
        if knows and alone and isinstance(excluded, list):
            return (Edit("exclude_modules", [*excluded, *names]),)
        if converted:
            return ()
    value = targets_without(structure, recipe, patterns)
    return (Edit("target_modules", value),) if value is not None else ()


def edits_excluding(
    structure: Structure, recipe: Recipe, targets: str | list[str], paths: Sequence[str]
) -> tuple[Edit, ...]:
    """``target_modules`` set to ``targets``, and these paths left out.

    By ``exclude_modules`` where this PEFT has it and it names nothing else, so that the targets
    stay as the user wrote them; else as a regular expression.
    """
    from lora_doctor.proposal.stack_ends import excluding
    from lora_doctor.static.installed.environment import lora_config_fields

    excluded = recipe.get("exclude_modules") or []
    own = [pattern_of(path) for path in paths]
    alone = not any(
        group.pattern.endswith(tuple(f".{pattern}" for pattern in own))
        for group in structure.groups
    )
    knows = "exclude_modules" in (lora_config_fields() or ())
    if not (knows and alone and isinstance(excluded, list)):
        return (Edit("target_modules", excluding(targets, paths)),)
    rest = () if targets == recipe.get("target_modules") else (Edit("target_modules", targets),)
    return (*rest, Edit("exclude_modules", list(dict.fromkeys([*excluded, *paths]))))


def without_lookahead(expression: str) -> str:
    """A regular expression without what it keeps out: ``(?!...)`` and ``(?<!...)``."""
    found = re.search(r"(?<!\\)\(\?<?!", expression)
    if found is None:
        return expression
    depth, end = 1, found.end()
    while end < len(expression) and depth:
        character = expression[end]
        depth += (character == "(") - (character == ")")
        end += 2 if character == "\\" else 1
    return without_lookahead(expression[: found.start()] + expression[end:])


def means_mlp(name: str) -> bool:
    """Whether a target entry asks for a part of the MLP, by its name."""
    from lora_doctor.proposal.roles import jobs_of_name

    return bool(jobs_of_name(name) & {"gate", "up", "down"})


def cover_of(structure: Structure, entries: Sequence[str]) -> list[str]:
    """This model's own names for the roles that the entries stand for (Llama's ``q_proj`` in
    Phi-3 is ``qkv_proj``); all offered layers when no role can be told."""
    from lora_doctor.proposal.defaults import role_cover

    names = [name for entry in entries for name in names_in(entry)]
    every = list(dict.fromkeys(group.leaf for group in offered_layers(structure)))
    slips = [intended(entry, every) for entry in entries]
    cover = [*role_cover(structure, names), *(name for name in slips if name)]
    return list(dict.fromkeys(cover)) or every


def beyond(structure: Structure, entries: Sequence[str]) -> list[str]:
    """What the layers of :func:`cover_of` do that no entry asks for: the ``key`` where ``q_proj``
    and ``v_proj`` are one ``qkv_proj`` here, and the names of the layers where no role can be told.
    Training these as well is another training than the one that was asked for."""
    from lora_doctor.proposal.roles import jobs_of_group, jobs_of_name

    asked = {job for entry in entries for name in names_in(entry) for job in jobs_of_name(name)}
    every = list(dict.fromkeys(group.leaf for group in offered_layers(structure)))
    slips = {intended(entry, every) for entry in entries}
    cover = [name for name in cover_of(structure, entries) if name not in slips]
    if not asked:
        return cover
    more: set[Job] = set()
    for group in offered_layers(structure):
        jobs = jobs_of_group(group, structure) if group.leaf in cover else frozenset()
        # A plain MLP has one way in, which does what other models call gate or up.
        one_way_in = jobs_of_name(group.leaf) != {"gate", "up"}
        more |= jobs - asked - ({"gate", "up"} if one_way_in else set())
    return sorted(more)


def same_job(structure: Structure, name: str) -> list[str]:
    """This model's own names for the role that a name stands for; empty when it has none that can
    be told."""
    from lora_doctor.proposal.defaults import role_cover

    return role_cover(structure, [name])


def intended(entry: str, names: Iterable[str]) -> str | None:
    """The one name that a mistyped entry can only mean: the same letters in another order or case,
    or one of them too many or too few (``v_porj``, ``qproj``). ``None`` when it says what it means
    or could mean several; another letter is no slip (``x_proj`` is not ``q_proj``)."""
    from lora_doctor.proposal.roles import jobs_of_name

    if jobs_of_name(entry) or not re.fullmatch(r"\w+", entry):
        return None
    near = [name for name in names if _slip(entry.lower(), name.lower())]
    return near[0] if len(near) == 1 and entry != near[0] else None


def _slip(typed: str, meant: str) -> bool:
    if sorted(typed) == sorted(meant):
        return True
    short, long = sorted((typed, meant), key=len)
    if len(long) - len(short) != 1:
        return False
    return any(long[:index] + long[index + 1 :] == short for index in range(len(long)))


def names_in(entry: str) -> list[str]:
    """Module names that an entry speaks of: itself, or the words at the end of a regular
    expression, such as ``q_proj`` and ``v_proj`` in ``.*self_attn\\.(q_proj|v_proj)``."""
    if re.fullmatch(r"[\w.]+", entry):
        return [entry.rpartition(".")[2]]
    return re.findall(r"[A-Za-z_]\w+", entry)
