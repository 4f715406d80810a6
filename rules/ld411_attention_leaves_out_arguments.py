"""LD411: an attention implementation that ignores a part of the model's attention."""

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
    quoted,
)
from lora_doctor.rules._attention import (
    KEY,
    eager_instead,
    forward_raised,
    implementation,
    measurements,
    readings,
)

_TARGETS = {"target_modules": ["q_proj", "v_proj"]}
_EVERYTHING = (
    "builds", "attaches", "forward", "starts-at-base", "loss-finite", "gradients", "steps",
    "adapters-move", "frozen-stay", "loss-falls", "save-reload", "merge",
)  # fmt: skip


class AttentionLeavesOutArguments(Rule):
    """The attention implementation does not support an argument that the model passes to it, and so
    ignores a part of the model's attention.

    ## What happens
    Often silently: the model passes the cap of its attention scores (`softcap`) to an
    implementation that does not support it, and trains with uncapped scores. Or the forward raises.

    ## Why
    Without `attn_implementation` transformers takes `sdpa` where the class allows it. That function
    accepts unknown arguments in `**kwargs` and ignores them. The adapter is then trained for a
    model that computes something else than the pretrained one, and than the one that will serve the
    adapter.

    ## Versions
    Gemma 2 with `sdpa`: a warning of the class in transformers 4.44 (LD403, nothing is seen to be
    left out there), seen in 4.53 and 4.57, refused in 5 (LD412).

    ## Fix
    `attn_implementation: eager` computes all of it, and takes more memory and time, which grow with
    the square of the length. `flash_attention_2` also supports the cap, on a GPU that can run it.

    ## Links
    https://huggingface.co/docs/transformers/attention_interface
    """

    code = "LD411"
    name = "attention-leaves-out-arguments"
    summary = "The attention implementation ignores a part of the model's attention."
    depth = "tiny"
    symptoms = (Symptom(r"`?sdpa`? attention does not support `?softcap"),)
    examples = (
        Example(
            "broken",
            "arch:gemma2",
            _TARGETS,
            requires={"transformers": ">=4.48,<5"},
            why="transformers' own choice is sdpa, which does not know the cap of its scores",
        ),
        Example("healthy", "arch:llama", {**_TARGETS, KEY: "sdpa"}),
        Example(
            "healthy",
            "arch:gemma2",
            {**_TARGETS, KEY: "eager"},
            requires={"transformers": ">=4.42"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("structure"):
            raise EvidenceError(case.why_not("structure"))
        found = readings(case)
        dropped = [item.dropped for item in found if item.dropped]
        if not dropped:
            return
        raised = forward_raised(case.verification)
        yield self.finding(
            "error" if raised else "warning",
            f"{implementation(found)} attention ignores {quoted(dropped, 3)}, which the model "
            "passes to it: the model then does not compute what the pretrained one does.",
            location=Location("recipe", KEY),
            evidence=tuple(measurements(case, found)),
            proof=Proof("executed", "seen in the first training forward"),
            fixes=eager_instead(case),
            explains=_EVERYTHING if raised else (),
        )
