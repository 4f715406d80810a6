"""LD647: PEFT refuses what a script does with several adapters."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, Symptom, excerpt
from lora_doctor.rules._adapter_steps import PROOF, at, call, faults


class AdapterCallRefused(Rule):
    """A script loads, combines, chooses or merges several adapters in a way that PEFT refuses.

    ## What happens
    `add_weighted_adapter`, `set_adapter`, `delete_adapter`, `load_adapter`, `hotswap_adapter` or a
    merge raises, after the model and the adapters have been loaded.

    ## Why
    Adapters that are combined have to fit each other: equal ranks for `linear`, `ties` and their
    kind, `target_modules` that are all lists or all expressions, no module that two of them save as
    a whole (`modules_to_save`). What the installed release refuses is found out by making the same
    calls on the model's class, with the configs and the shapes of these adapters.

    ## Versions
    All; releases differ in what they refuse.

    ## Fix
    By hand, by the message. `combination_type="cat"` or `"svd"` takes adapters of different ranks.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/model_merging,
    https://github.com/huggingface/peft/issues/3737, https://github.com/huggingface/peft/pull/1137
    """

    code = "LD647"
    name = "adapter-call-refused"
    summary = "PEFT refuses what a script does with several adapters."
    depth = "meta"
    symptoms = (
        Symptom(r"All adapters must have the same r value"),
        Symptom(r"all adapter configs should follow the same target modules type"),
        Symptom(r"Cannot add weighted adapters if they target the same module with"),
        Symptom(r"Cannot unload multiple adapters that specify `?modules_to_save"),
        Symptom(r"add_weighted_adapter does not support targeting nn\.Parameter"),
        Symptom(r"Invalid combination_type|No matching LoRAs found"),
        Symptom(r"Hot ?swapping the adapter did not succeed"),
        Symptom(r"\bAdapter (?:with name )?(?:\S{1,80} )?(?:does not exist|already exists)\b"),
        Symptom(
            r"\bAdapter (?:with name )?(?:\S{1,80} )?not found(?:\. Please pass|\.?$| in "
            r"\w{0,9}[\[({_])"
        ),
        Symptom(r"\bAdapter\(s\) .{1,200}? not found, available adapters"),
        Symptom(r"Following adapter\(s\) could not be found|No adapter loaded\. Please load an"),
        Symptom(r"Found no adapter matching the names|infer with non-existing adapter"),
        Symptom(r"Only one adapter can be set at a time|specify at least one adapter to set"),
        Symptom(r"Attempted to set multiple \(.{1,200}?\) adapters at once"),
        Symptom(r"Cannot (?:delete adapter\(s\)|hot-swap adapter) .{1,200}? merged"),
        Symptom(r"Cannot combine adapters with different peft types"),
        Symptom(r"supports only 1 adapter with bias|not supported for mixed models"),
        Symptom(r"Invalid type <class '\w+'> found in target_modules", context="add_weighted"),
        Symptom(r"math domain error|expected a nonnegative input", context="add_weighted_adapter"),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/combined_of_two_ranks.py",
            depth="meta",
            why="linear adds matrices, which have other shapes for another rank",
        ),
        Example("healthy", "tests/scripts/combined_by_cat.py", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for fault, step in faults(case, "refused"):
            error = fault.error
            yield self.finding(
                "error",
                f"{step.code} will fail: {excerpt(error)}",
                location=at(step),
                evidence=(
                    call(step),
                    Measurement("what PEFT raises", str(error), "the same call, made here"),
                ),
                proof=PROOF,
                fixes=(Fix(_advice(str(error)), "manual"),),
            )


def _advice(error: str) -> str:
    if "same r value" in error:
        return 'Combine them with combination_type="cat" or "svd", which take different ranks.'
    if "modules_to_save" in error:
        return (
            "Merge or combine one adapter that saves this module, and the others without it: two "
            "whole modules have no common result."
        )
    return "Change the call, or the adapters, as the message says."
