"""LD614: the checkpoint has more layers than its config, and the last ones are not loaded."""

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
)
from lora_doctor.static.folder.layers import stack_mismatches

#: Modules of layers that predict further tokens.
_ON_PURPOSE = r"\.(?:eh_proj|enorm|hnorm|shared_head)\b|\bmtp\b"


class LayersLeftOut(Rule):
    """The checkpoint has more layers than its config declares.

    ## What happens
    `from_pretrained` does not load the last layers, with a warning about unused weights, and the
    model works badly from the start. Adapters are trained on the shortened model, and do not fit
    once the config is corrected.

    ## Why
    The config is that of a smaller model of the same family, or was edited for a trial run.

    Layers that predict further tokens (`num_nextn_predict_layers`) are left out on purpose and not
    counted. A stack that several config entries could refer to is not judged.

    ## Versions
    All.

    ## Fix
    The config that belongs to the weights. Where the model was shortened on purpose, ignore this
    rule.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model
    """

    code = "LD614"
    name = "layers-left-out"
    summary = "The checkpoint has more layers than its config; the last ones are not loaded."
    depth = "static"
    symptoms = (
        Symptom(
            r"were not used when initializing \w+: "
            r"\[(?!.{0,3000}?layers\.0\.)[^\]]{0,200}?layers\.\d+\.[\w.]+\.weight'",
            "transformers 4",
            unless=_ON_PURPOSE,
        ),
        Symptom(
            r"layers\.(?:\{[1-9][\d, .]*\}|[1-9]\d*)\.[\w.]+\.weight\s*\|\s*UNEXPECTED",
            "transformers 5",
            unless=r"layers\.\{?0\b[^|]{0,80}\|\s*UNEXPECTED|" + _ON_PURPOSE,
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/layers_left_out",
            depth="static",
            why="one layer announced, two in the checkpoint",
        ),
        Example("healthy", "tests/folders/vocabulary_padded", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        static = case.static
        for found in stack_mismatches(static.config, static.weights.require()):
            if not found.left_over:
                continue
            yield self.finding(
                "warning",
                f"The checkpoint has layers up to {found.stack}.{found.left_over[-1]} and "
                f"{found.key} is {found.announced}: {len(found.left_over)} of its layers will not "
                "be loaded.",
                location=Location("file", "config.json"),
                evidence=(
                    Measurement(found.key, found.announced, static.where("config.json")),
                    Measurement(f"layers in {found.stack}", found.found, "names of its tensors"),
                    Measurement("left out", list(found.left_over[:50]), "layer numbers"),
                ),
                proof=Proof("read", "from the names of the tensors and config.json"),
                fixes=(
                    Fix(
                        f"Write {found.key}: {found.left_over[-1] + 1} into config.json of a "
                        "copy of the folder, or use the config that belongs to these weights.",
                        "manual",
                    ),
                ),
            )
