"""LD654: a script loads what needs code of its folder, and does not trust that code."""

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
    excerpt,
    untrusted_code,
)


class CodeNotTrusted(Rule):
    """`from_pretrained` is called without `trust_remote_code` for a model or tokenizer whose class
    is code of its own folder.

    ## What happens
    transformers asks whether the code may run. Where nobody can answer, after 15 seconds, or where
    `trust_remote_code=False` was given, it raises `Please pass the argument trust_remote_code=True
    to allow custom code to be run`.

    ## Why
    The argument counts for one call. A script that trusts the model's code may not trust the
    tokenizer's, and `AutoPeftModelFor...` loads the base model and a tokenizer that was saved
    beside the adapter, both with the argument that it was given itself.

    ## Versions
    All. Only folders that are here are looked at. Where the installed transformers has a class of
    its own, it takes that and does not ask.

    ## Fix
    Read the code, then pass `trust_remote_code=True`. lora-doctor does not write that: whether the
    code may run is for you to say.

    ## Links
    https://github.com/unslothai/unsloth/issues/924,
    https://github.com/FreedomIntelligence/HuatuoGPT/issues/26
    """

    code = "LD654"
    name = "code-not-trusted"
    summary = "A script loads what needs code of its folder, without trust_remote_code."
    depth = "static"
    symptoms = (
        Symptom(r"pass the argument `trust_remote_code=True` to allow custom code to be run"),
        Symptom(
            r"requires you to execute the \w+ file in that repo on your local machine",
            "transformers<4.32",
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/code_not_trusted.py",
            depth="static",
            why="the model's classes are code, and nobody has said that it may run",
        ),
        Example("healthy", "tests/scripts/code_trusted.py", depth="static"),
        Example("healthy", "tests/scripts/merged_both.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for one in untrusted_code(case.program):
            place, code = one.call.place, one.code
            yield self.finding(
                "error",
                f"{one.call.name.removeprefix('transformers.')} will be refused: "
                f"{code.auto_class} needs code of {code.file.parent.name} "
                f"({excerpt(code.reference)}), and the call has no trust_remote_code=True.",
                location=Location("file", place.file, place.line),
                evidence=(
                    Measurement("the call", excerpt(one.call.span.text), str(place)),
                    Measurement(f"auto_map of {code.auto_class}", excerpt(code.reference),
                                str(code.file)),
                    Measurement("a class for it in the installed transformers", "none",
                                "its sources"),
                ),
                proof=Proof("read", "the call, the folder's files and the classes of the installed "
                            "transformers"),
                fixes=(
                    Fix("Read that code; then pass trust_remote_code=True to this call.", "manual"),
                ),
            )  # fmt: skip
