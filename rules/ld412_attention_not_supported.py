"""LD412: an attention implementation that the model's class refuses."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    REMOVE,
    Case,
    Edit,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._attention import KEY

_TARGETS = {"target_modules": ["q_proj", "v_proj"]}
_EVERYTHING = (
    "builds", "attaches", "forward", "starts-at-base", "loss-finite", "gradients", "steps",
    "adapters-move", "frozen-stay", "loss-falls", "save-reload", "merge",
)  # fmt: skip


class AttentionNotSupported(Rule):
    """The model's class does not support the requested attention implementation.

    ## What happens
    Loading ends in a `ValueError`: `... does not support an attention implementation through
    torch.nn.functional.scaled_dot_product_attention yet`.

    ## Why
    A class declares which implementations it supports (`_supports_sdpa`, `_supports_flash_attn`),
    and transformers refuses the others. Without `attn_implementation` it takes one that is
    supported.

    ## Versions
    All. Gemma 2 with `sdpa` is refused since transformers 5; before, it silently trained without
    the cap of its scores (LD411).

    ## Fix
    Remove `attn_implementation`, or set it to `eager`.

    ## Links
    https://huggingface.co/docs/transformers/attention_interface
    """

    code = "LD412"
    name = "attention-not-supported"
    summary = "The model's class does not support the requested attention implementation."
    depth = "meta"
    symptoms = (
        Symptom(r"does not support an attention implementation through"),
        Symptom(r"does not support Flash Attention \d(?:\.0)? yet"),
    )
    examples = (
        Example(
            "broken",
            "arch:gemma2",
            {**_TARGETS, KEY: "sdpa"},
            requires={"transformers": ">=5"},
            why="refused by the class",
        ),
        Example("healthy", "arch:llama", {**_TARGETS, KEY: "sdpa"}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("structure"):
            return
        asked = case.recipe.get(KEY)
        reason = case.why_not("structure")
        without = (Edit(KEY, REMOVE),)
        cause = case.cause_of("structure")
        missing_package = cause is not None and cause.type in ("ImportError", "ModuleNotFoundError")
        if (
            asked is None
            or missing_package
            or not case.again(case.recipe.edit(without), case.patches).has("structure")
        ):
            raise EvidenceError(reason)
        yield self.finding(
            "error",
            f"The model does not support {asked} attention.",
            location=Location("recipe", KEY),
            evidence=(
                Measurement("built with it", reason, "the full-size class on the meta device"),
                Measurement("built without", "yes", "the full-size class on the meta device"),
            ),
            proof=Proof("executed", "the class was constructed with and without it"),
            fixes=(Fix(f"Leave the choice to transformers: remove {KEY}.", "unsafe", without),),
            explains=_EVERYTHING,
        )
