"""LD613: the checkpoint lacks whole layers, which are then random."""

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
    quoted,
)
from lora_doctor.static.folder.layers import StackMismatch, stack_mismatches


class LayersNotInCheckpoint(Rule):
    """The config declares more layers than the checkpoint has.

    ## What happens
    `from_pretrained` warns that some weights were newly initialized, and goes on. The missing
    layers are random, with other values each time the model is loaded. Adapters are trained for a
    model that exists only in this process; an adapter folder does not contain the base model.

    ## Why
    The checkpoint was cut, merged or converted without some of its layers, or the config is that of
    a larger model of the same family.

    Found by comparing the layer numbers in the tensor names with the config entry for the same
    stack. A stack that several entries could refer to is not judged.

    ## Versions
    All.

    ## Fix
    The complete checkpoint, or the config that belongs to it.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model
    """

    code = "LD613"
    name = "layers-not-in-checkpoint"
    summary = "The checkpoint lacks whole layers; they are random after every loading."
    depth = "static"
    symptoms = (
        Symptom(
            r"not initialized from the model checkpoint at .{1,300}? newly initialized: "
            r"\[(?!.{0,3000}?layers\.0\.)[^\]]{0,200}?layers\.\d+\.[\w.]+\.weight'",
            weight=1,
        ),
        Symptom(
            r"layers\.(?:\{[1-9][\d, .]*\}|[1-9]\d*)\.[\w.]+\.weight\s*\|\s*MISSING"
            r"(?:.{0,2900}?newly initialized because missing from the checkpoint)?",
            "transformers 5",
            unless=r"layers\.\{?0\b[^|]{0,80}\|\s*MISSING",
            weight=1,
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/layers_missing",
            depth="static",
            why="four layers announced, two in the checkpoint",
        ),
        Example("healthy", "tests/folders/vocabulary_padded", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        static = case.static
        weights = static.weights.require()
        if weights.unread:
            return  # layers in files that are not there are no layers that were left out: LD615
        for found in stack_mismatches(static.config, weights):
            if found.missing:
                yield self._missing(found, static.where("config.json"))

    def _missing(self, found: StackMismatch, config: str) -> Finding:
        names = quoted([f"{found.stack}.{number}" for number in found.missing], 4)
        # A config for another model is corrected by a number; a gap is not.
        cut = found.missing == tuple(range(found.found, found.announced))
        other = f", or write {found.key}: {found.found} into a copy of config.json" if cut else ""
        return self.finding(
            "error",
            f"{found.key} declares {found.announced} layers and the checkpoint has "
            f"{found.found}: {names} will be random after every loading.",
            location=Location("file", "config.json"),
            evidence=(
                Measurement(found.key, found.announced, config),
                Measurement(f"layers in {found.stack}", found.found, "names of its tensors"),
                Measurement("missing", list(found.missing[:50]), "layer numbers"),
            ),
            proof=Proof("read", "from the names of the tensors and config.json"),
            fixes=(Fix(f"Use the complete checkpoint{other}.", "manual"),),
        )
