"""LD581: the set-up names a file or folder that is not there."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    ENTRY,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._set_up import located, written


class NamedPathMissing(Rule):
    """The set-up names a file or folder that is not there.

    ## What happens
    The run stops once it opens the file: an adapter to go on with, a dataset, a checkpoint to
    resume from, a chat template or a DeepSpeed config. Frameworks look for a missing folder on the
    hub next, so that the error is often about a repository.

    ## Why
    The path is mistyped, or relative to another folder.

    ## Versions
    All. A path counts as missing only if the folder that would contain it is here: relative to the
    working directory or to the folder of the set-up. One that a script or config beside the set-up
    names as well may be made by an earlier step, and is not reported.

    ## Fix
    The neighbour with nearly the same name, if there is one. It may be another adapter or dataset,
    so it is not a safe fix.

    ## Links
    https://huggingface.co/docs/peft/en/tutorial/peft_model_config
    """

    code = "LD581"
    name = "named-path-missing"
    summary = "The set-up names a file or folder that does not exist."
    depth = "static"
    symptoms = (
        Symptom(r"Can't find a valid checkpoint at \S"),
        Symptom(r"Expected a string path to an existing deepspeed config"),
    )
    examples = (
        Example("broken", "tests/set_ups/data/adapter_missing.yaml", depth="static"),
        Example("healthy", "tests/set_ups/axolotl.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        set_up = case.set_up
        for absent in case.side_files.absent:
            nearest = f"; the nearest existing name is {absent.near}" if absent.near else ""
            whole = set_up.entries.get(absent.entry) == absent.path and absent.near
            edits = (Edit(f"{ENTRY}{absent.entry}", absent.near),) if whole else ()
            yield self.finding(
                "warning",
                f"{absent.entry} names {absent.path}, which does not exist{nearest}.",
                location=located(set_up, absent.entry),
                evidence=(
                    written(set_up, absent.entry),
                    Measurement("folder that is there", absent.folder, "file system"),
                ),
                proof=Proof("read", "looked for from the working directory and from the folder of "
                            "the set-up"),
                fixes=(
                    Fix(f"Write {absent.near}.", "unsafe", edits) if edits
                    else Fix("Correct the path, or put the file there.", "manual"),
                ),
            )  # fmt: skip
