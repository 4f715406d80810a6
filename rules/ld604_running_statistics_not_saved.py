"""LD604: running statistics that change in training and are not saved with the adapters."""

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
    Symptom,
    quoted,
    suffix,
)
from lora_doctor.rules._ablation import with_edits
from lora_doctor.rules._round_trip import round_trip


class RunningStatisticsNotSaved(Rule):
    """Batch norms of the frozen base model update their running statistics while the adapters are
    trained, and the adapter file does not contain them.

    ## What happens
    The loss falls, everything is saved without an error, and the loaded model gives other outputs
    than the trained one: its batch norms have the statistics of the checkpoint again. Conformer
    speech encoders have a batch norm in every layer.

    ## Why
    `requires_grad=False` freezes weights. Running means and variances are buffers; every forward in
    training mode updates them, and `Trainer` calls `model.train()` before each step. PEFT saves
    adapters and `modules_to_save`, but no buffers of the base model.

    ## Versions
    All.

    ## Fix
    Name the batch norms in `modules_to_save`: they are then trained too and saved with their
    statistics (the offered edit was executed). Or keep them in `eval()` after each `model.train()`,
    which trains with the statistics of the checkpoint; that needs code.

    ## Links
    https://github.com/huggingface/peft/issues/1732
    """

    code = "LD604"
    name = "running-statistics-not-saved"
    summary = "Batch norm statistics of the base model change in training and are not saved."
    depth = "tiny"
    descriptions = (
        Symptom(
            r"\b(?:batch ?norms?|running (?:mean|statistics))\b.{0,60}\b(?:not saved|lost|rese"
            r"t)"
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:seamless_m4t",
            {"model_class": "AutoModelForSpeechSeq2Seq", "target_modules": ["q_proj", "v_proj"]},
            requires={"transformers": ">=4.50"},
        ),
        Example(
            "healthy",
            "arch:seamless_m4t",
            {
                "model_class": "AutoModelForSpeechSeq2Seq",
                "target_modules": ["q_proj", "v_proj"],
                "modules_to_save": ["conv_module.batch_norm"],
            },
            requires={"transformers": ">=4.50"},
        ),
        Example(
            "healthy",
            "arch:whisper",
            {"target_modules": ["q_proj", "v_proj"]},
            why="layer norms keep no statistics",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen, saving = round_trip(case)
        moved = saving.statistics
        if not moved:
            return
        again = seen.check("save-reload")
        named = [*(case.recipe.get("modules_to_save") or ()), *dict.fromkeys(map(suffix, moved))]
        edit = Edit("modules_to_save", named)
        after = with_edits(case, [edit]).check("save-reload")
        fixes = (
            Fix(
                f"Train and save the batch norms with the adapters: modules_to_save={named!r}.",
                "unsafe",
                (edit,),
            ),
        )
        alone = after is not None and after.status == "passed"
        yield self.finding(
            "error" if again is not None and again.status == "failed" else "warning",
            f"The running statistics of {quoted(moved, 3)} changed in training and are not in "
            "the adapter folder: the loaded model has the old ones.",
            location=Location("module", moved[0]),
            evidence=(
                Measurement(
                    "logits after saving and loading, relative difference",
                    f"{again.value:.3g}" if again is not None and again.value else "not measured",
                    f"{case.settings.depth} model",
                ),
                Measurement(
                    "with these modules in modules_to_save",
                    f"{after.value:.3g}" if after is not None and alone else "not better",
                    f"{case.settings.depth} model",
                ),
            ),
            proof=Proof("executed", "trained, saved and loaded; the buffers were compared"),
            fixes=fixes
            if alone
            else (Fix("Keep these modules in eval() after each model.train().", "manual"),),
            explains=("save-reload",) if alone else (),
        )
