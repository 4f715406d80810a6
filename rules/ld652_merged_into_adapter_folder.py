"""LD652: a merged model is saved into the folder of the adapter that was merged."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Rule,
    Symptom,
    merged_into_adapter_folder,
)
from lora_doctor.rules._program import PROOF


class MergedIntoAdapterFolder(Rule):
    """`merge_and_unload` is followed by `save_pretrained` into the folder of the adapter itself.

    ## What happens
    The folder holds the merged model and the adapter. `AutoModel.from_pretrained` and `pipeline`
    find its `adapter_config.json` and load the adapter, too: with transformers 5 the update is
    applied twice, with transformers 4 the merged weights are not read and the base model is needed.

    ## Why
    `save_pretrained` of the merged model writes its own files and removes no others.

    ## Versions
    transformers 5.24 applies it twice; 4.57 loads the base model that the adapter names.

    ## Fix
    By hand: save the merged model into a folder of its own.

    ## Links
    https://github.com/huggingface/peft/issues/1381
    """

    code = "LD652"
    name = "merged-into-adapter-folder"
    summary = "A merged model is saved into the folder of the adapter that was merged."
    depth = "static"
    descriptions = (
        Symptom(
            r"\bmerge_and_unload\b.{0,160}\b(?:adapter|lora)\b.{0,60}\b(?:loaded|applied)\b.{0,40}"
            r"\b(?:again|twice|back on)\b"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/merged_into_adapter_folder.py",
            depth="static",
            why="loading that folder loads the adapter as well",
        ),
        Example("healthy", "tests/scripts/merged_both.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for slip in merged_into_adapter_folder(case.program):
            yield self.finding(
                "warning",
                f"{slip.code} saves the merged model into the folder of its own adapter: loading "
                "that folder finds both, and the adapter is applied to the merged weights again "
                "(transformers 5) or to the base model, without them (transformers 4).",
                location=Location("file", slip.place.file, slip.place.line),
                evidence=(
                    Measurement("the call", slip.code, str(slip.place)),
                    Measurement("adapter loaded", slip.other_code, str(slip.other_place)),
                ),
                proof=PROOF,
                fixes=(Fix("Save the merged model into a folder of its own.", "manual"),),
            )
