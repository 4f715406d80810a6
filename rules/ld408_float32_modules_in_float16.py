"""LD408: modules compute in float16 although the model's class keeps them in float32."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Location,
    Measurement,
    Proof,
    Rule,
    quoted,
)
from lora_doctor.rules._float16 import (
    chosen_by,
    computes_in_float16,
    measured,
    not_kept,
    wider_dtypes,
)


class Float32ModulesInFloat16(Rule):
    """The model's class keeps some modules in float32 when the rest is loaded in float16, and with
    this recipe they compute in float16.

    ## What happens
    The first activation above 65504 becomes inf and the loss NaN, from the first step or after a
    few hundred, as in `LD402`.

    ## Why
    The output of T5's second feed-forward layer may exceed the range of float16, which is why its
    class lists it in `_keep_in_fp32_modules`. `from_pretrained` respects that list; `.half()` and
    the autocast of `fp16: true` do not.

    The dtype is observed in a run of the tiny model, whose random weights never overflow, so the
    finding says "may". Where the user's own weights were run, their outputs were measured
    (`LD402`), and this rule reports nothing.

    ## Versions
    All.

    ## Fix
    bfloat16, which changes only rounding, or float32 on hardware without bfloat16. If that takes
    too much memory: float32 for these modules and float16 for the others.

    ## Links
    https://github.com/huggingface/transformers/issues/11461
    """

    code = "LD408"
    name = "float32-modules-in-float16"
    summary = "Modules that the model's class keeps in float32 compute in float16."
    depth = "tiny"
    examples = (
        Example(
            "broken",
            "arch:t5",
            {"target_modules": ["q", "v"], "fp16": True},
            why="autocast computes in float16 what the class keeps in float32",
        ),
        Example(
            "healthy",
            "arch:t5",
            {"target_modules": ["q", "v"], "bf16": True},
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "fp16": True},
            why="the class keeps nothing in float32",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not computes_in_float16(case):
            return
        run = case.verification
        if measured(run):
            return
        lost = not_kept(run)
        if not lost:
            if run.outcome == "undetermined":
                raise EvidenceError(run.reason, limit=run.limit)
            return
        source = f"dtype of the output, {run.depth} model, executed"
        paths = [item.path for item in lost]
        evidence = [Measurement(item.path, "float16", source) for item in lost[:6]]
        evidence.append(
            Measurement("the model's class", "keeps them in float32", "_keep_in_fp32_modules")
        )
        yield self.finding(
            "warning",
            f"{quoted(paths, 2)} compute in float16, although the model's class keeps them in "
            "float32 because they may overflow.",
            location=Location("module", paths[0]),
            evidence=(*evidence, *chosen_by(case, run)),
            proof=Proof(
                "inferred",
                ("the dtype was observed; the tiny model's random weights cannot overflow"),
            ),
            fixes=wider_dtypes(case, paths),
        )
