"""LD530: the set-up has keys that its framework does not have."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    ENTRY,
    REMOVE,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Framework,
    Measurement,
    Proof,
    Rule,
    Severity,
    Symptom,
    framework_named,
)
from lora_doctor.rules._set_up import located


class KeysNotInTheFramework(Rule):
    """The set-up has keys that its framework does not have.

    ## What happens
    axolotl, and TRL when it reads a YAML file, silently ignore such a key: a mistyped
    `lora_dropuot` leaves the dropout at its default. LLaMA-Factory, ms-swift, and TRL on the
    command line exit with an error.

    ## Why
    The key is mistyped, belongs to another framework, or was renamed (`train_type` of ms-swift 3).

    ## Versions
    The keys are compared with the classes of the installed framework; where it is not installed,
    with those of the release that the finding names.

    ## Fix
    The key that was meant. Where the framework ignored the mistyped key, the setting now takes
    effect, which changes training. An ignored key that resembles no other can be removed.

    ## Links
    https://docs.axolotl.ai/docs/config-reference.html,
    https://huggingface.co/docs/trl/clis
    """

    code = "LD530"
    name = "keys-not-in-the-framework"
    summary = "The set-up has keys that its framework does not have."
    depth = "static"
    symptoms = (
        Symptom(
            r"Some (?:specified arguments|keys) are not used by the HfArgumentParser"
            # a notebook's own argument; what stands behind a backslash, which is LD534
            r"(?!: \['(?:-f|--f=)[^]]{0,300}kernel-)(?!: \['(?: |\\[trn])+')",
        ),
        Symptom(r"specified config arguments are not used by the TrlParser", "TRL before 0.12"),
        Symptom(r"ValueError: remaining_argv: \[(?!'(?: |\\[trn])+')", "ms-swift"),
        Symptom(r"Unknown arguments from config file: ", "TRL"),
        Symptom(
            r"error: unrecognized arguments: --",
            context=r"llamafactory-cli|\b(?:trl|swift) (?:sft|pt|dpo|grpo|kto|reward|rlhf)\b",
        ),
    )
    examples = (
        Example("broken", "tests/set_ups/axolotl_mistyped.yaml"),
        Example("healthy", "tests/set_ups/axolotl.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        set_up = case.set_up
        framework = framework_named(set_up.format)
        for name, meant in set_up.unknown.items():
            taken = meant in set_up.entries
            yield self._finding(case, framework, name, "" if taken else meant)

    def _finding(self, case: Case, framework: Framework, name: str, meant: str) -> Finding:
        set_up = case.set_up
        fields = framework.fields()
        assert fields is not None, "without them unknown keys cannot be found"
        on_the_line = name in set_up.places and set_up.places[name].file.endswith(".sh")
        refused = framework.unknown == "refused" or on_the_line
        severity: Severity = "error" if refused and fields.installed else "warning"
        if fields.installed:
            does = "refuses it" if refused else "silently ignores it"
        else:
            does = "may refuse it" if refused else "may silently ignore it"
        said = f"; did you mean {meant}?" if meant else "."
        return self.finding(
            severity,
            f"{set_up.format} has no key {name} and {does}{said}",
            location=located(set_up, name),
            evidence=(
                Measurement(name, set_up.entries[name], str(set_up.places.get(name, "set-up"))),
                Measurement("keys of the framework", len(fields.names), fields.origin),
            ),
            proof=Proof(
                "read" if fields.installed else "inferred",
                f"compared with the classes of {fields.origin}",
            ),
            fixes=(_fix(set_up.entries[name], name, meant, refused),),
        )


def _fix(value: object, name: str, meant: str, refused: bool) -> Fix:
    if meant:
        edits = (Edit(f"{ENTRY}{name}", REMOVE), Edit(f"{ENTRY}{meant}", value))
        return Fix(f"Write {meant} instead of {name}.", "safe" if refused else "unsafe", edits)
    if refused:
        return Fix(f"Remove {name}, or write the key that was meant.", "manual")
    return Fix(f"Remove {name}.", "safe", (Edit(f"{ENTRY}{name}", REMOVE),))
