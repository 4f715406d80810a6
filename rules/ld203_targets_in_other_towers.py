"""LD203: targets reach into towers that the recipe does not mean to train, or get no gradient."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.case import Case
from lora_doctor.evidence.propose import name_groups
from lora_doctor.evidence.structure import ModuleGroup, Structure, Tower
from lora_doctor.recipe import Recipe
from lora_doctor.rule import Edit, Example, Finding, Fix, Location, Measure, Proof, Rule, Symptom
from lora_doctor.targets import needs_lora, quoted, side_towers, target_entries


class TargetsInOtherTowers(Rule):
    """Bare names such as `q_proj` also match the vision or audio tower of a multimodal model, and
    some of the adapters there never get a gradient.

    ## What happens
    LLaVA with `[q_proj, v_proj]` gets as many adapters in its vision tower as its layers have.
    They are trained along, a text-only batch gives them no gradient, and those of the last vision
    layer get none ever, because the features are taken one layer before. With several GPUs DDP
    stops at the first parameter that got no gradient.

    ## Why
    PEFT matches the end of a path, and vision towers use the same names as language models.

    ## Versions
    All of PEFT; `exclude_modules` exists from 0.14 on.

    ## Fix
    A regular expression that names the language tower. Where adapters of single layers get no
    gradient, leaving these out changes nothing in what is learnt.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD203"
    name = "targets-reach-other-towers"
    summary = "Targets reach into a vision or audio tower, or into layers that get no gradient."
    depth = "meta"
    symptoms = (
        Symptom(r"Expected to have finished reduction in the prior iteration"),
        Symptom(r"parameters that were not used in producing loss"),
    )
    examples = (
        Example("broken", "arch:llava", {"target_modules": ["q_proj", "v_proj"]}),
        Example(
            "healthy",
            "arch:llava",
            {"target_modules": r".*language_model.*\.(q_proj|v_proj)"},
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj", "v_proj"]}),
        Example(
            "healthy",
            "arch:whisper",
            {"target_modules": ["q_proj", "v_proj"]},
            why="an encoder-decoder for speech is meant as a whole",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        needs_lora(case.recipe)
        if not structure.injection.ok:
            return
        dead = _without_gradient(case)
        strays = _stray_groups(structure, case.recipe)
        if not strays and not dead:
            return
        evidence = [
            Measure(f"adapters in {tower.path or 'model'} ({tower.kind})",
                    f"{sum(group.adapted for group in groups)} layers", tower.why)
            for tower, groups in strays
        ]  # fmt: skip
        idle = _idle_in_text(case, strays)
        if idle:
            evidence.append(
                Measure("adapters that a batch of text alone gives no gradient", str(idle),
                        f"{case.settings.depth} model")
            )  # fmt: skip
        if dead:
            evidence.append(
                Measure("adapters without gradient", quoted(dead, 6),
                        f"{case.settings.depth} model, every batch")
            )  # fmt: skip
        # The tiny model has fewer layers; what is said is of the model at full size.
        layers = _named(_last_layers(case)) if dead else []
        names = ", ".join(tower.path for tower, _ in strays)
        kinds = " and ".join(sorted({tower.kind for tower, _ in strays}))
        if strays:
            count = sum(group.adapted for _, groups in strays for group in groups)
            message = (
                f"The targets also match {count} layers of the {kinds} tower ({names})"
                + (f", and {len(dead)} adapters get no gradient" if dead else "")
                + "."
            )
        elif layers:
            message = f"The adapters in {quoted(layers, 3)} get no gradient, whatever the batch."
        else:
            message = f"{len(dead)} adapters get no gradient: {quoted(dead, 3)}."
        yield self.finding(
            "warning",
            message,
            location=Location("module", names or (layers or dead)[0]),
            evidence=tuple(evidence),
            proof=Proof("executed", "gradients were counted in a real backward")
            if dead
            else Proof("measured", "PEFT was run on the real class and the result was counted"),
            fixes=_fixes(case, strays, dead, _unreached(case) if dead else set(), layers),
            explains=("gradients", "adapters-move") if dead else (),
        )


def _without_gradient(case: Case) -> list[str]:
    """Paths of adapters that got no gradient on any batch, while others did."""
    if not case.reaches("tiny") or not case.has("verification"):
        return []
    if case.recipe.get("gradient_checkpointing"):
        return []  # it may be what cuts the gradients off
    if not case.verification.gradients_counted:
        return []  # the run stopped before every factor could have got one
    groups = [group for group in case.verification.adapters if _was_fed(case, group.pattern)]
    if not any(group.with_gradient for group in groups):
        return []  # nothing learns at all: another cause
    return [path for group in groups for path in group.examples_without_gradient]


def _was_fed(case: Case, pattern: str) -> bool:
    """Whether some batch had what this place takes: without a picture, vision proves nothing."""
    senses = {"vision": ("image", "video"), "audio": ("audio",)}
    tower = next(
        (
            tower
            for tower in sorted(case.structure.towers, key=lambda tower: -len(tower.path))
            if not tower.path or pattern.startswith(f"{tower.path}.")
        ),
        None,
    )
    wanted = senses.get(tower.kind, ()) if tower else ()
    return not wanted or any(
        word in batch.kind for batch in case.verification.batches for word in wanted
    )


def _idle_in_text(case: Case, strays: list[tuple[Tower, list[ModuleGroup]]]) -> int:
    """Adapters of the strays that a batch of text alone gave no gradient, where there was one."""
    if not case.reaches("tiny") or not case.has("verification"):
        return 0
    if "text" not in {batch.kind for batch in case.verification.batches}:
        return 0
    paths = tuple(f"{tower.path}." for tower, _ in strays)
    return sum(
        group.count
        for group in case.verification.adapters
        if group.pattern.startswith(paths) and "text" not in group.batches
    )


def _unreached(case: Case) -> set[str]:
    """Names of layers of which not one adapter got a gradient: they are never called."""
    leaves = {group.pattern.rpartition(".")[2] for group in case.verification.adapters}
    reached = {
        group.pattern.rpartition(".")[2]
        for group in case.verification.adapters
        if group.with_gradient
    }
    return leaves - reached


def _stray_groups(structure: Structure, recipe: Recipe) -> list[tuple[Tower, list[ModuleGroup]]]:
    """Adapted groups in encoders that serve a language model, unless the recipe names them."""
    strays = []
    for tower in side_towers(structure):
        if _speaks_of(recipe, tower):
            continue
        groups = [group for group in structure.groups if group.tower == tower.path]
        adapted = [group for group in groups if group.adapted]
        if adapted:
            strays.append((tower, adapted))
    return strays


def _speaks_of(recipe: Recipe, tower: Tower) -> bool:
    """Whether an entry names the tower, as ``vision_tower`` in a path or an expression."""
    words = set(re.findall(r"\w+", tower.path))
    return any(words & set(re.findall(r"\w+", entry)) for entry in target_entries(recipe))


def _fixes(
    case: Case,
    strays: list[tuple[Tower, list[ModuleGroup]]],
    dead: list[str],
    unreached: set[str],
    layers: list[str],
) -> tuple[Fix, ...]:
    fixes = []
    structure, recipe = case.structure, case.recipe
    meant = [group for group in structure.groups_of("language", "head") if group.adapted]
    if strays and meant:
        expression = name_groups(structure, meant)[0]
        fixes.append(
            Fix(
                "Train the language tower only: a regular expression with its path.",
                "unsafe",
                (Edit("target_modules", expression),),
            )
        )
    entries = target_entries(recipe)
    idle = [name for name in entries if name in unreached]
    if idle and len(idle) < len(entries) and not isinstance(recipe.get("target_modules"), str):
        fixes.append(
            Fix(
                f"Leave out {quoted(idle)}: it is never called, so its adapter learns nothing.",
                "safe",
                (Edit("target_modules", [name for name in entries if name not in idle]),),
            )
        )
    elif layers and entries and "all-linear" not in entries:
        fixes.append(
            Fix(
                f"Leave out {quoted(layers, 4)}: the model never uses what comes out of it, so its "
                "adapters learn nothing.",
                "safe",
                (Edit("target_modules", _without(layers, entries, recipe)),),
            )
        )
    elif dead:
        fixes.append(
            Fix(
                f"Leave out what gets no gradient ({quoted(dead, 3)}), or feed a batch that "
                "reaches it.",
                "manual",
            )
        )
    return tuple(fixes)


def _last_layers(case: Case) -> dict[str, list[int]]:
    """Stacks of which exactly the last layers got no gradient, to the numbers that these have at
    full size. Empty when anything else got none as well, which this does not explain."""
    found: dict[str, list[int]] = {}
    for group in case.verification.adapters:
        count = group.count - group.with_gradient
        if not count or not _was_fed(case, group.pattern):
            continue
        stack, star, rest = group.pattern.partition(".*.")
        tail = {f"{stack}.{number}.{rest}" for number in range(group.with_gradient, group.count)}
        full = [item.count for item in case.structure.groups if item.pattern == group.pattern]
        if not star or "*" in rest or set(group.examples_without_gradient) != tail or not full:
            return {}
        numbers = list(range(full[0] - count, full[0]))
        if found.setdefault(stack, numbers) != numbers:
            return {}
    return found


def _named(last: dict[str, list[int]]) -> list[str]:
    return [f"{stack}.{number}" for stack, numbers in last.items() for number in numbers]


def _without(names: list[str], entries: list[str], recipe: Recipe) -> str:
    """The entries as one regular expression that passes these layers by."""
    barred = "|".join(re.escape(name) + r"\." for name in names)
    if isinstance(recipe.get("target_modules"), str):
        return f"(?!{barred})(?:{entries[0]})"
    leaves = "|".join(re.escape(entry) for entry in entries)
    return rf"(?!{barred})(?:.*\.)?(?:{leaves})"
