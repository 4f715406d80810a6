"""LD605: a module that was left trainable is frozen by PEFT, and neither trained nor saved."""

from __future__ import annotations

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
    Rule,
    Symptom,
    quoted,
)
from lora_doctor.rules._round_trip import round_trip, trained_whole

if TYPE_CHECKING:
    from lora_doctor.rule_api import Saving


class FrozenByPeft(Rule):
    """A module was deliberately left trainable while the rest of the model was frozen, and
    `get_peft_model` freezes it too.

    ## What happens
    The adapters learn and the loss falls somewhat. The new head keeps its random initial values: it
    gets no gradient, and the adapter folder does not contain it.

    ## Why
    `get_peft_model` sets `requires_grad = False` on every weight that is neither an adapter nor in
    a module of `modules_to_save`, whatever it was before.

    ## Versions
    All.

    ## Fix
    Name the module in `modules_to_save`: it is then trained as a copy and saved with the adapters.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD605"
    name = "frozen-by-peft"
    summary = "A module left trainable is frozen by get_peft_model, not trained and not saved."
    depth = "tiny"
    descriptions = (
        Symptom(
            r"\bget_peft_model\b.{0,40}\b(?:freezes|froze|frozen)\b.{0,40}\b(?:head|layer|modu"
            r"le|projector)"
        ),
        Symptom(
            r"\A(?=.*\b(?:head|classifier|projector)\b)(?=.*\b(?:lora|peft|adapters?)\b)(?=.*"
            r"\b(?:not (?:seem to be )?(?:being )?(?:train|updat|learn)\w*|n't (?:train|learn)"
            r"\w*)\b).+"
        ),
    )
    told_as = ("LoRA does not train the head: get_peft_model has frozen it.",)
    examples = (
        Example(
            "broken",
            "tests.models:detector_with_frozen_base",
            {"target_modules": ["q_proj", "v_proj"]},
            why="the one part that was left trainable is frozen by PEFT and not saved",
        ),
        Example(
            "healthy",
            "tests.models:detector_with_frozen_base",
            {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["detection_head"]},
        ),
        Example(
            "healthy",
            "arch:whisper",
            {"target_modules": ["q_proj", "v_proj"]},
            why="the class freezes its position table itself; the rest is not left trainable on "
            "purpose",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        _, saving = round_trip(case)
        if saving.frozen and case.structure.built_in is None:
            yield self._frozen(case, saving)

    def _frozen(self, case: Case, saving: Saving) -> Finding:
        names = quoted(saving.frozen, 4)
        added = trained_whole(case, saving.frozen)
        possible = all("*" not in path for path in saving.frozen)
        edit = Fix(
            f"Train and save it with the adapters: modules_to_save: {added}.",
            "unsafe",
            (Edit("modules_to_save", added),),
        )
        words = Fix("Name the modules in modules_to_save by the end of their paths.", "manual")
        kept = quoted(case.recipe.get("modules_to_save") or ())
        source = "requires_grad before and after get_peft_model"
        return self.finding(
            "error",
            f"Neither trained nor saved: {names}, which is trainable before get_peft_model and "
            f"which PEFT freezes ({saving.frozen_parameters:,} parameters).",
            location=Location("recipe", "modules_to_save"),
            evidence=(
                Measurement("trainable before get_peft_model", names, source),
                Measurement("frozen after it", f"{saving.frozen_parameters:,} parameters", source),
                Measurement("modules_to_save", kept or "not set", "recipe"),
            ),
            proof=Proof("executed", "the adapters were added, trained and saved"),
            fixes=(edit if possible else words,),
        )
