"""LD602: a trained module is not in the adapter folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
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
from lora_doctor.rules._round_trip import difference, round_trip, source

if TYPE_CHECKING:
    from lora_doctor.rule_api import Saving, Verification


class TrainedButNotSaved(Rule):
    """A module is trained in addition to the adapters, and the adapter folder does not contain it.

    ## What happens
    The loss falls and everything is saved without an error. After loading, the trained head has its
    initial values again: only the adapters were saved.

    ## Why
    An adapter folder holds the adapters and what `modules_to_save` names, nothing else. A module
    that was made trainable by hand after `get_peft_model`, or that is outside the `PeftModel` whose
    `save_pretrained` is called, is not in it. Only saving and loading shows it: the folder looks
    complete, and loading it gives no warning.

    ## Versions
    All.

    ## Fix
    Name the module in `modules_to_save`: PEFT then trains and saves it. For a module outside the
    `PeftModel`, save its `state_dict()` in addition to the adapter, or wrap the whole model in a
    `PeftModel`.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """

    code = "LD602"
    name = "trained-but-not-saved"
    summary = "A module that is trained in addition to the adapters is not in the adapter folder."
    depth = "tiny"
    descriptions = (
        Symptom(
            r"\b(?:head|classifier|score|projector|modules?_to_save)\b.{0,60}\b(?:not"
            r"|never|isn.t|aren.t|wasn.t) saved"
        ),
        Symptom(
            r"\A(?=.*\b(?:head|classifier|score layer)\b)(?=.*\b(?:lora|peft|adapters?)\b)(?=."
            r"*\b(?:not|n't|never)\b.{0,12}\bsaved\b).+"
        ),
    )
    told_as = (
        "The classification head is not saved: the reloaded model has a random head.",
        "The reloaded model is much worse than the trained model was in memory.",
        "The head has random weights after loading the adapter.",
    )
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
        if saving.lost_elsewhere:
            return
        beside = tuple(name for name in saving.lost if _stands_beside(name, saving))
        # What is trained by mistake is lost by right: another rule has said that it is trained. A
        # head of the user's own beside the PeftModel is trained on purpose.
        names = beside if "save-reload" in case.explained else saving.lost
        if names:
            yield self._lost(case, seen, saving, names)

    def _lost(
        self, case: Case, seen: Verification, saving: Saving, lost: tuple[str, ...]
    ) -> Finding:
        names = quoted(lost, 4)
        check = seen.check("save-reload")
        also = _also_named(case, lost)
        place = f"the PeftModel at {saving.wrapped!r}" if saving.wrapped else "the PeftModel"
        if all(_stands_beside(name, saving) for name in lost):
            advice = (
                f"It is outside {place}: save its state_dict() in addition to the adapter and "
                "load it again, or wrap the whole model with get_peft_model and name it in "
                f"modules_to_save{also}."
            )
        else:
            advice = (
                f"Name it in the adapter config, modules_to_save={list(lost)!r}, instead of "
                f"making it trainable by hand: PEFT then trains and saves it{also}."
            )
        return self.finding(
            "error",
            f"Trained, but not saved: {names}. After loading the adapter folder it has the "
            f"values from before training ({saving.lost_parameters:,} parameters).",
            location=Location("module", lost[0]),
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


def _stands_beside(name: str, saving: Saving) -> bool:
    """Whether a module is in none of the PeftModels that were saved."""
    places = [place for place in saving.wrapped.split(", ") if place]
    return bool(places) and not any(f"{name}.".startswith(f"{place}.") for place in places)


def _also_named(case: Case, lost: tuple[str, ...]) -> str:
    """A warning where `modules_to_save` would take other modules as well: PEFT compares the end of
    the path, without a dot before it (`attn` is the end of `self_attn`)."""
    last = {name.rpartition(".")[2] for name in lost}
    hit = sorted(
        {
            part
            for group in case.structure.groups
            for part in group.pattern.split(".")
            if any(part.endswith(name) and part != name for name in last)
        }
    )
    if not hit:
        return ""
    return (
        f" (rename it first: PEFT compares the end of the path, and {quoted(hit, 3)} ends "
        "in the same name)"
    )
