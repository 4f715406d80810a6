"""LD649: an adapter that was combined or swapped in is saved and cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, Symptom
from lora_doctor.rules._adapter_steps import PROOF, at, call, faults


class CombinedAdapterNotLoadable(Rule):
    """The adapter that `add_weighted_adapter` or `hotswap_adapter` made is saved with a config that
    it does not fit.

    ## What happens
    Combining, swapping and saving work. `PeftModel.from_pretrained` of the saved adapter raises a
    size mismatch.

    ## Why
    `linear`, `ties` and their kind keep the rank that each module had, and the config of the
    combination has one rank for all: the `rank_pattern` of its parts is dropped. `hotswap_adapter`
    takes tensors of another rank and leaves the config of the adapter that was there before.

    ## Versions
    Depends on the installed PEFT: the shapes that are saved are compared with those that loading
    makes.

    ## Fix
    By hand: combine with `cat` or `svd`, or merge the combination at once instead of saving it.
    What was swapped in is in its own folder already.

    ## Links
    https://github.com/huggingface/peft/issues/3737, https://github.com/huggingface/peft/issues/3581
    """

    code = "LD649"
    name = "combined-adapter-not-loadable"
    summary = "An adapter that was combined or swapped in is saved and cannot be loaded."
    depth = "meta"
    symptoms = (
        Symptom(
            r"size mismatch for \S+lora_[AB]\.\S+",
            context=r"add_weighted_adapter|rank_pattern|hotswap_adapter",
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/combined_of_rank_patterns.py",
            depth="meta",
            requires={"peft": ">=0.15"},
            why="the rank pattern of the parts is dropped",
        ),
        Example("healthy", "tests/scripts/combined_by_cat.py", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for fault, step in faults(case, "not-loadable"):
            count, _, detail = fault.detail.partition(": ")
            yield self.finding(
                "error",
                f"{step.code} saves the adapter {fault.adapters[0]!r}, which cannot be "
                f"loaded: {count} of its tensors do not fit its config ({detail}).",
                location=at(step),
                evidence=(
                    call(step),
                    Measurement("tensors that do not fit", fault.detail, "shapes, saved and made"),
                ),
                proof=PROOF,
                fixes=(
                    Fix(
                        'Combine with combination_type="cat" or "svd"; or merge the combination '
                        "(merge_and_unload) and save the merged model. An adapter that was swapped "
                        "in is saved already: in the folder that it came from.",
                        "manual",
                    ),
                ),
            )
