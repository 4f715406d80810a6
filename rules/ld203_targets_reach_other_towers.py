"""LD203: targets also match layers of a vision or audio tower."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Recipe,
    Rule,
    Symptom,
    name_groups,
    require_lora,
    side_towers,
    target_entries,
    without_lookahead,
)
from lora_doctor.rules._set_up import all_frozen, freezing

if TYPE_CHECKING:
    from lora_doctor.rule_api import ModuleGroup, Structure, Tower


class TargetsReachOtherTowers(Rule):
    """Bare names such as `q_proj` also match the vision or audio tower of a multimodal model.

    ## What happens
    LLaVA with `[q_proj, v_proj]` also gets adapters in every layer of its vision tower. They are
    trained too, and a text-only batch gives them no gradient. With several GPUs, DDP stops at the
    first parameter without a gradient.

    ## Why
    PEFT matches the end of a module path, and vision towers use the same layer names as language
    models.

    ## Versions
    All versions of PEFT; `exclude_modules` exists from 0.14 on.

    ## Fix
    A regular expression with the path of the language tower.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD203"
    name = "targets-reach-other-towers"
    summary = "Targets also match layers of a vision or audio tower."
    depth = "meta"
    symptoms = (
        Symptom(r"Expected to have finished reduction in the prior iteration"),
        Symptom(r"parameters that were not used in producing loss"),
    )
    descriptions = (
        Symptom(
            r"\b(?:vision|visual|vit|image|audio)\b.{0,60}\b(?:unintention|unintended"
            r"|unexpected|unwanted|accidental|by mistake|unasked)"
        ),
        Symptom(
            r"\b(?:also|unintentionally|accidentally|wrongly) (?:hit|adapt|match|target"
            r"|train|add|wrap|reach)\w*.{0,40}\b(?:vision|visual|vit|image|audio)\b"
        ),
        Symptom(r"\b(?:lora|adapters?) (?:to|on|in|into) the (?:vision|visual|vit|image|audio)\b"),
        Symptom(r"\ball-linear\b.{0,60}\b(?:vision|visual|vit|image|audio)\b"),
    )
    told_as = (
        "LoRA was also added to the vision tower, which I did not want.",
        "Parameters of the vision encoder are also trainable and have LoRA.",
        "The vision encoder gets LoRA although only the language model should.",
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
        require_lora(case.recipe)
        if not structure.injection.ok:
            return
        strays = [
            (tower, groups)
            for tower, groups in _stray_groups(structure, case.written)
            # Adapters that the framework freezes (axolotl's freeze_mm_modules) stay at zero.
            if not any(all_frozen(freezes, groups) for freezes in freezing(case).values())
        ]
        if not strays:
            return
        evidence = [
            Measurement(f"adapters in {tower.path or 'model'} ({tower.kind})",
                    f"{sum(group.adapted for group in groups)} layers", tower.why)
            for tower, groups in strays
        ]  # fmt: skip
        without_gradient = _without_gradient_on_text(case, strays)
        if without_gradient:
            evidence.append(
                Measurement(
                    "adapters without gradient on a text-only batch",
                    str(without_gradient),
                    f"{case.settings.depth} model",
                )
            )
        names = ", ".join(tower.path for tower, _ in strays)
        kinds = " and ".join(sorted({tower.kind for tower, _ in strays}))
        count = sum(group.adapted for _, groups in strays for group in groups)
        meant = [group for group in structure.groups_of("language", "head") if group.adapted]
        fix = Fix(
            "Adapt the language tower only: a regular expression with its path.",
            "unsafe",
            (Edit("target_modules", name_groups(structure, meant)[0]),),
        ) if meant else None  # fmt: skip
        yield self.finding(
            "warning",
            f"The targets also match {count} layers of the {kinds} tower ({names}).",
            location=Location("module", names),
            evidence=tuple(evidence),
            proof=Proof(
                "measured",
                (
                    "PEFT injected the adapters into the full-size model on "
                    "the meta device, and they were counted"
                ),
            ),
            fixes=(fix,) if fix else (),
        )


def _without_gradient_on_text(case: Case, strays: list[tuple[Tower, list[ModuleGroup]]]) -> int:
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


def _stray_groups(structure: Structure, written: Recipe) -> list[tuple[Tower, list[ModuleGroup]]]:
    """Adapted groups in encoders that serve a language model, unless the user names them."""
    strays = []
    for tower in side_towers(structure):
        if _speaks_of(written, tower):
            continue
        groups = [group for group in structure.groups if group.tower == tower.path]
        adapted = [group for group in groups if group.adapted]
        if adapted:
            strays.append((tower, adapted))
    return strays


def _speaks_of(written: Recipe, tower: Tower) -> bool:
    """Whether an entry names the tower, as ``vision_tower`` in a path or an expression; what an
    expression keeps out is no wish to train the rest of it."""
    words = set(re.findall(r"\w+", tower.path))
    entries = map(without_lookahead, target_entries(written))
    return any(words & set(re.findall(r"\w+", entry)) for entry in entries)
