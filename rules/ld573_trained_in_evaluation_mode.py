"""LD573: the model is trained in evaluation mode."""

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
    Symptom,
    trained_in_eval_mode,
)


class TrainedInEvaluationMode(Rule):
    """A training loop of one's own never calls `model.train()`, or not after the `model.eval()` of
    its first evaluation.

    ## What happens
    No error is raised. Dropout is off, that of the adapters (`lora_dropout`) and that of the model,
    and gradient checkpointing has no effect: activations take the memory that it should save.

    ## Why
    `from_pretrained` returns the model in evaluation mode, and `get_peft_model` leaves that as it
    is. Trainers call `train()` in each step; a loop has to.

    It is reported where the recipe has a dropout of the adapters or gradient checkpointing, which
    are then without effect.

    ## Versions
    All versions of transformers and PEFT.

    ## Fix
    By hand: `model.train()` before the loop, and after each evaluation.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model#transformers.PreTrainedModel.from_pretrained
    """

    code = "LD573"
    name = "trained-in-evaluation-mode"
    summary = "A loop trains the model in evaluation mode: no dropout, no checkpointing."
    depth = "static"
    descriptions = (Symptom(r"\b(?:forgot|without|missing|need\w*)\b.{0,40}\bmodel\.train\(\)"),)
    examples = (
        Example(
            "broken",
            "tests/loops/never_in_training_mode.py",
            depth="static",
            why="from_pretrained gives a model in evaluation mode",
        ),
        Example(
            "broken",
            "tests/loops/left_in_evaluation_mode.py",
            depth="static",
            why="evaluate() leaves the model in evaluation mode after the first epoch",
        ),
        Example("healthy", "tests/loops/teacher_without_gradients.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        idle = _without_effect(case)
        found = trained_in_eval_mode(case.program) if idle else None
        if found is None:
            return
        what = (
            f"{found.code} leaves the model in evaluation mode, and the loop goes on without "
            "model.train()"
            if found.later
            else "The loop trains a model in evaluation mode: model.train() is never called"
        )
        yield self.finding(
            "warning",
            f"{what}; {' and '.join(idle)} has no effect.",
            location=Location("file", found.place.file, found.place.line),
            evidence=(
                Measurement("in evaluation mode since", found.since_code, str(found.since)),
                *(Measurement("without effect", one, str(case.recipe.places.get(one, "recipe")))
                  for one in idle),
            ),
            proof=Proof("read", "the calls were followed in the order of the script"),
            fixes=(
                Fix("Call model.train() before the loop and after each evaluation.", "manual"),
            ),
        )  # fmt: skip


def _without_effect(case: Case) -> list[str]:
    """Keys of the recipe, as it was written, that do nothing in evaluation mode."""
    asked = case.asked
    dropout = asked.get("lora_dropout")
    found = ["lora_dropout"] if isinstance(dropout, (int, float)) and dropout > 0 else []
    return found + (["gradient_checkpointing"] if asked.get("gradient_checkpointing") else [])
