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
    No error is raised. Gradient checkpointing has no effect: activations take the memory that it
    should save. After `model.eval()` the dropout of the adapters (`lora_dropout`) is off as well.

    ## Why
    `from_pretrained` returns the model in evaluation mode, and `get_peft_model` leaves its layers
    so; only the adapters, which are new, are in training mode. Trainers call `train()` in each
    step; a loop has to.

    It is reported where the recipe has something that is then without effect: gradient
    checkpointing, and after an `eval()` in the loop also `lora_dropout`.

    ## Versions
    All versions of transformers and PEFT.

    ## Fix
    By hand: `model.train()` before the loop, and after each evaluation.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model#transformers.PreTrainedModel.from_pretrained
    """

    code = "LD573"
    name = "trained-in-evaluation-mode"
    summary = "A loop trains the model in evaluation mode: settings have no effect."
    depth = "static"
    descriptions = (
        Symptom(r"\b(?:forgot|without|missing|need\w*)\b.{0,40}\bmodel\.train\(\)"),
        Symptom(
            r"\b(?:never|not|forg[eo]t|didn't|don't)\b.{0,15}\bcall\w*\b.{0,10}\bmodel\.train"
            r"\(\)"
        ),
    )
    told_as = ("The model is trained in evaluation mode, dropout has no effect.",)
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
        Example(
            "healthy",
            "tests/loops/only_dropout_of_the_adapters.py",
            depth="static",
            why="nothing that is set depends on the mode of the loaded model",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = trained_in_eval_mode(case.program)
        idle = _without_effect(case, found.later) if found is not None else []
        if found is None or not idle:
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


def _without_effect(case: Case, later: bool) -> list[str]:
    """Keys of the recipe, as it was written, that do nothing in evaluation mode. ``later``: the
    adapters are in it as well, since ``eval()`` was called on all."""
    asked = case.asked
    dropout = asked.get("lora_dropout")
    drops = later and isinstance(dropout, (int, float)) and dropout > 0
    found = ["lora_dropout"] if drops else []
    return found + (["gradient_checkpointing"] if asked.get("gradient_checkpointing") else [])
