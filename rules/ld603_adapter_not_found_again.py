"""LD603: an adapter that the installed PEFT does not find again in the file it saved."""

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
    Patch,
    Proof,
    Rule,
    Symptom,
    name_groups,
    quoted,
    require_lora,
    suffix,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import ModuleGroup


class AdapterNotFoundAgain(Rule):
    """PEFT saves the adapters of some layers under one name and looks for them under another.

    ## What happens
    Training runs and saves. Loading the adapter warns about missing adapter keys and continues:
    those adapters are zero again, and the model answers as if they had never been trained.

    ## Why
    transformers 5 renames the weights of old checkpoints while it loads them (`layers.` ->
    `language_model.layers.`, `shared_expert.` -> `shared_experts.`). PEFT 0.21 applies the same
    renames to saved adapters, so that adapters saved with the old names still load. But an adapter
    that is saved today already has the new names, and where a rename also matches those, the result
    names no layer. Which layers are affected is found by saving and loading the adapter on the meta
    device.

    ## Versions
    PEFT 0.19 and later with transformers 5, for models whose renames match their own new names.

    ## Fix
    The patch `saved_names_stay`, in training and wherever the adapter is loaded: a name that the
    model has is not renamed. Or do not adapt these layers, which needs no patch but trains less.

    ## Links
    https://github.com/huggingface/peft/blob/main/src/peft/utils/transformers_weight_conversion.py
    """

    code = "LD603"
    name = "adapter-not-found-again"
    summary = "PEFT does not find the adapters of some layers in the file that it saved."
    depth = "meta"
    symptoms = (
        Symptom(
            r"Found missing adapter keys while loading the checkpoint",
            "transformers 5, PEFT 0.19+",
            weight=-1,
        ),
        Symptom(r"Adapter name '?[\w.\-]+'? should not be contained in the prefix", "PEFT 0.14+"),
    )
    examples = (
        Example(
            "broken",
            "arch:laguna",
            {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
            requires={"transformers": ">=5.20", "peft": ">=0.21"},
            why="the rename `shared_expert.` takes `shared_experts` for the old name: `.` is any "
            "letter",
        ),
        Example(
            "broken",
            "arch:unlimited_ocr",
            {"target_modules": r".*language_model.*\.(q_proj|v_proj)"},
            requires={"transformers": ">=5.20", "peft": ">=0.21"},
            why="`layers.` becomes `language_model.layers.` once more",
        ),
        Example(
            "healthy",
            "arch:laguna",
            {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
            requires={"transformers": ">=5.20", "peft": ">=0.21"},
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        require_lora(case.recipe)
        lost = structure.injection.not_reloaded
        if not lost:
            return
        adapted = [group for group in structure.groups if group.adapted]
        layers = sum(group.adapted for group in adapted if group.pattern in lost)
        example = structure.injection.not_reloaded_example
        saved = example.saved if example else ""
        looked_for = example.looked_for if example else ""
        kept = [group for group in adapted if group.pattern not in lost]
        yield self.finding(
            "error",
            f"Saved adapters of {layers} layers ({quoted(lost, 3)}) will not be found when the "
            "adapter is loaded: PEFT looks for them under other names.",
            location=Location("module", lost[0]),
            evidence=(
                Measurement("layers whose adapter is lost", quoted(lost, 8), "installed PEFT"),
                Measurement("name in the file", saved, "get_peft_model_state_dict"),
                Measurement("name that PEFT looks for", looked_for, "set_peft_model_state_dict"),
            ),
            proof=Proof(
                "measured",
                (
                    "the adapter was saved and loaded again into the full-size "
                    "model on the meta device"
                ),
            ),
            fixes=(
                Fix(
                    "Patch PEFT to keep the names that these adapters have in the model, in "
                    "training and wherever the adapter is loaded.",
                    "safe",
                    patch=Patch("saved_names_stay"),
                ),
                *_left_out(case, kept, lost),
            ),
            explains=("save-reload",),
        )


def _left_out(case: Case, kept: list[ModuleGroup], lost: tuple[str, ...]) -> tuple[Fix, ...]:
    """The adapters without what is lost."""
    layers = [group for group in kept if group.kind != "parameter"]
    forms = name_groups(case.structure, layers)
    if not forms:
        return ()
    edits = [Edit("target_modules", forms[0])]
    parameters = case.recipe.get("target_parameters")
    if parameters:
        gone = {suffix(pattern) for pattern in lost}
        stay = [name for name in parameters if name not in gone]
        edits.append(Edit("target_parameters", stay or None))
    return (
        Fix(
            f"Do not adapt the layers that are not found again ({quoted(lost, 3)}).",
            "unsafe",
            tuple(edits),
        ),
    )
