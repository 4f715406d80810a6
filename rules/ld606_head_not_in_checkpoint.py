"""LD606: the checkpoint has no weights for a head, and the adapter folder will not have them."""

from __future__ import annotations

from collections.abc import Iterator

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
    Saving,
    Symptom,
    Verification,
    quoted,
)
from lora_doctor.rules._round_trip import difference, matches, round_trip, trained_whole


class HeadNotInCheckpoint(Rule):
    """The class has a head that its checkpoint has no weights for, and PEFT does not save it.

    ## What happens
    `from_pretrained` warns that some weights were newly initialized. Training runs and saves. The
    adapter then answers otherwise each time it is loaded, because the head is another one.

    ## Why
    A classifier or a detection head on a base checkpoint is made at random while the model is
    loaded. Unless the `task_type` (`SEQ_CLS`, `TOKEN_CLS`) or `modules_to_save` names it, PEFT
    freezes it, and an adapter folder does not hold frozen weights. The adapters are trained for a
    head that exists in this one process. Adapters on the head do not help: they are saved, the
    weights under them are not.

    ## Versions
    All. Told from the names of the tensors in the checkpoint.

    ## Fix
    Name the head in `modules_to_save`: it is then trained, and saved with the adapters. Adapters
    on it are left out, for it is trained whole.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD606"
    name = "head-not-in-checkpoint"
    summary = "The head is made at random at every loading, and PEFT does not save it."
    depth = "tiny"
    symptoms = (Symptom(r"Some weights of \w+ were not initialized from the model checkpoint"),)
    examples = (
        Example(
            "broken",
            "tests/folders/base_without_head",
            {
                "model_class": "AutoModelForSequenceClassification",
                "task_type": None,
                "target_modules": ["q_proj", "v_proj"],
            },
            why="a classifier on the checkpoint of a language model, and nothing that saves it",
        ),
        Example(
            "healthy",
            "tests/folders/base_without_head",
            {
                "model_class": "AutoModelForSequenceClassification",
                "task_type": "SEQ_CLS",
                "target_modules": ["q_proj", "v_proj"],
            },
            why="PEFT trains and saves the classifier for this task type",
        ),
        Example(
            "healthy",
            "tests/folders/base_without_head",
            {"target_modules": ["q_proj", "v_proj"]},
            why="the language model that the checkpoint is",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen, saving = round_trip(case)
        if saving.new_heads:
            yield self._new_heads(case, seen, saving)

    def _new_heads(self, case: Case, seen: Verification, saving: Saving) -> Finding:
        names = quoted(saving.new_heads, 4)
        return self.finding(
            "error",
            f"The checkpoint has no weights for {names}: they are made at random at every loading, "
            "and the adapter folder will not have them.",
            location=Location("recipe", "modules_to_save"),
            evidence=(
                Measurement("not in the checkpoint", names, "names of its tensors"),
                Measurement("frozen and not saved", f"{saving.new_head_parameters:,} parameters",
                        "requires_grad and modules_to_save after get_peft_model"),
                *difference(seen, "save-reload", "logits after loading, with a new head"),
            ),
            proof=Proof("executed", "the adapters were saved and loaded onto a base whose head is "
                        "new, as from_pretrained makes it"),
            fixes=(Fix(f"Train and save {names} with the adapters (modules_to_save).",
                       "unsafe", _trained_whole(case, saving.new_heads)),),
            explains=("save-reload",),
        )  # fmt: skip


def _trained_whole(case: Case, heads: tuple[str, ...]) -> tuple[Edit, ...]:
    """The heads in ``modules_to_save``, and no adapters on them."""
    edits = (Edit("modules_to_save", trained_whole(case, heads)),)
    targets = case.recipe.get("target_modules")
    if not isinstance(targets, list):
        return edits
    left = [entry for entry in targets if not any(matches(path, entry) for path in heads)]
    return (Edit("target_modules", left), *edits) if left and left != targets else edits
