"""LD651: several adapters are loaded, and merging takes only some of them."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, Symptom
from lora_doctor.rules._adapter_steps import PROOF, at, call, faults


class AdapterLeftOutOfMerge(Rule):
    """A script loads several adapters, and what it merges leaves one of them out.

    ## What happens
    Nothing is raised. `load_adapter` does not make an adapter active, so that `merge_and_unload`
    merges the first one only, and the other is gone. Or `merge_adapter` merges some of the active
    adapters: the others count as active, and are not applied. Or several adapters save a module as
    a whole (`modules_to_save`): the active adapter's stays, whichever are merged.

    ## Why
    Merging takes the active adapters unless it is given `adapter_names`. A layer with merged
    adapters answers with its weight alone. Adapters that were there when `set_adapter` chose others
    are not reported.

    ## Versions
    All.

    ## Fix
    By hand: name them, `merge_and_unload(adapter_names=["first", "second"])`, or combine them
    before with `add_weighted_adapter` and `set_adapter`.

    ## Links
    https://github.com/huggingface/peft/issues/1064, https://github.com/huggingface/peft/pull/3763
    """

    code = "LD651"
    name = "adapter-left-out-of-merge"
    summary = "Several adapters are loaded, and merging takes only some of them."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\b(?:two|2|several|multiple|second)\b.{0,40}\badapters?\b.{0,120}"
            r"\bmerge_and_unload\b.{0,120}\b(?:only|first|ignored|not merged)\b"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/merged_one_of_two.py",
            depth="meta",
            requires={"peft": ">=0.7"},
            why="the second adapter was only loaded, and is not active",
        ),
        Example("healthy", "tests/scripts/merged_both.py", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.settings.trains:
            return  # an adapter may be there for the training only, such as a reference
        for fault, step in faults(case, "left-out"):
            names = ", ".join(map(repr, fault.adapters))
            merged = ", ".join(map(repr, fault.merged)) or "nothing"
            effect = {
                "taken off": f"{names} was loaded but never active, and is removed without being "
                "merged",
                "active": f"{names} stays active and is not applied where others are merged",
            }.get(
                fault.detail,
                f"the whole {fault.detail} of {names} is dropped, and that of the active adapter "
                "stays",
            )
            yield self.finding(
                "warning",
                f"{step.code} merges {merged}: {effect}.",
                location=at(step),
                evidence=(
                    call(step),
                    Measurement("merged", merged, "the same call, made here"),
                    Measurement("left out", names, "the same call, made here"),
                ),
                proof=PROOF,
                fixes=(
                    Fix(
                        "Name every adapter to merge: adapter_names=[...]; or combine them first "
                        "with add_weighted_adapter and set_adapter.",
                        "manual",
                    ),
                ),
            )
