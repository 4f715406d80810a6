"""LD602: what is saved is not what was trained: a trained module is not in the adapter folder."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Saving,
    Verification,
    quoted,
)
from lora_doctor.rules._round_trip import difference, round_trip, source


class TrainedButNotSaved(Rule):
    """A module is trained beside the adapters, and the adapter folder does not have it.

    ## What happens
    The loss falls and everything is saved without an error. After loading, the trained head is
    back at its first values: the adapters are there, what was trained beside them is not.

    ## Why
    An adapter folder holds the adapters and what `modules_to_save` names, nothing else. A module
    that was made trainable by hand after `get_peft_model`, or that stands beside the `PeftModel`
    whose `save_pretrained` is called, is not in it. Only a round trip tells: the folder is
    complete in itself, and loading it says nothing.

    ## Versions
    All.

    ## Fix
    Name the module in `modules_to_save`: PEFT then trains and saves it. A module outside the
    `PeftModel` needs its own `state_dict()` beside the adapter, or a `PeftModel` around the whole.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """

    code = "LD602"
    name = "trained-but-not-saved"
    summary = "A module that is trained beside the adapters is not in the adapter folder."
    depth = "tiny"
    examples = (
        Example(
            "broken",
            "tests.models:detector_beside_a_peft_model",
            why="the head stands beside the PeftModel whose folder is saved",
        ),
        Example(
            "broken",
            "tests.models:head_unfrozen_after_wrapping",
            loaded=True,
            why="made trainable by hand, which PEFT does not know of when it saves",
        ),
        Example(
            "healthy",
            "tests.models:detector_with_frozen_base",
            {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["detection_head"]},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen, saving = round_trip(case)
        # What is trained by mistake is lost by right: another rule has said that it is trained.
        if saving.lost and not saving.lost_elsewhere and "save-reload" not in case.explained:
            yield self._lost(seen, saving)

    def _lost(self, seen: Verification, saving: Saving) -> Finding:
        names = quoted(saving.lost, 4)
        check = seen.check("save-reload")
        place = f"the PeftModel at {saving.wrapped!r}" if saving.wrapped else "the PeftModel"
        if saving.wrapped:
            advice = (
                f"It stands outside {place}: save its state_dict() beside the adapter and load it "
                "again, or wrap the whole model with get_peft_model and name it in modules_to_save."
            )
        else:
            advice = (
                f"Name it in the adapter config, modules_to_save={list(saving.lost)!r}, instead of "
                "making it trainable by hand: PEFT then trains and saves it."
            )
        return self.finding(
            "error",
            f"Trained, but not saved: {names}. After loading the adapter folder it has the values "
            f"from before the training ({saving.lost_parameters:,} parameters).",
            location=Location("module", saving.lost[0]),
            evidence=(
                Measurement(
                    "trained, not in the adapter folder", names, source(seen, "saved, loaded")
                ),
                Measurement(
                    "parameters lost", saving.lost_parameters, source(seen, "saved, loaded")
                ),
                *difference(seen, "save-reload", "logits after loading"),
            ),
            proof=Proof("executed", f"{place} was saved and loaded onto a fresh base"),
            fixes=(Fix(advice, "manual"),),
            explains=("attaches", "save-reload") if check else ("attaches",),
        )
