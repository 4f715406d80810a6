"""LD403: an attention implementation that the model's own code advises against."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Location,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._attention import (
    KEY,
    eager_instead,
    implementation,
    measurements,
    readings,
)

_TARGETS = {"target_modules": ["q_proj", "v_proj"]}


class AttentionAgainstTheModelsAdvice(Rule):
    """The model's own code warns against this attention implementation in training.

    ## What happens
    A warning in the log of the first step (`It is strongly recommended to train Gemma3 models with
    the eager attention implementation instead of sdpa`), and training goes on.

    ## Why
    Without `attn_implementation` transformers takes `sdpa` where the class allows it. Its authors
    observed worse training results with it. An implementation that ignores a part of the model's
    attention is LD411.

    ## Versions
    Gemma 2 with `sdpa`: in transformers 4.44 and 4.53, beside LD411's cause. Gemma 3: a warning in
    4.53, taken back in 4.57.

    ## Fix
    `attn_implementation: eager`: takes more memory and time, which grow with the square of the
    length.

    ## Links
    https://huggingface.co/docs/transformers/attention_interface
    """

    code = "LD403"
    name = "attention-against-the-models-advice"
    summary = "The model's own code advises against this attention implementation in training."
    depth = "tiny"
    symptoms = (Symptom(r"strongly recommended to train \S+ models with the `?eager`? attention"),)
    examples = (
        Example(
            "broken",
            "arch:gemma3_text",
            _TARGETS,
            requires={"transformers": ">=4.50,<4.57"},
            why="transformers' own choice is sdpa, and Gemma 3's forward warns of it",
        ),
        Example("healthy", "arch:llama", {**_TARGETS, KEY: "sdpa"}),
        Example(
            "healthy",
            "arch:gemma3_text",
            _TARGETS,
            requires={"transformers": ">=4.57"},
            why="no cap, and this transformers has taken its warning back",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("structure"):
            raise EvidenceError(case.why_not("structure"))
        found = readings(case)
        if not found or any(item.dropped for item in found):
            return  # what it leaves out is the reason for the advice
        name = implementation(found)
        yield self.finding(
            "warning",
            f"The model's own code advises against training with {name} attention.",
            location=Location("recipe", KEY),
            evidence=tuple(measurements(case, found)),
            proof=Proof("executed", "seen in the first training forward"),
            fixes=eager_instead(case),
        )
