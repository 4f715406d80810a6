"""LD636: an adapter that is swapped in is scaled in another way than when it is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, Symptom
from lora_doctor.rules._adapter_steps import PROOF, at, call, faults


class SwappedAdapterRescaled(Rule):
    """`hotswap_adapter` gives the model the weights of another adapter, and not its scaling.

    ## What happens
    Nothing is raised. The adapter that was swapped in is too strong or too weak in some layers. Or
    it is right until it is saved, and the copy is too strong or too weak when it is loaded.

    ## Why
    The function looks for an entry of `rank_pattern` or `alpha_pattern` by the name of the tensor
    instead of the layer's, finds none and takes `r` and `lora_alpha`. And it leaves the config in
    the model as it was, which is then saved beside the weights of the other adapter.

    ## Versions
    Measured with the installed PEFT: the factor of each layer after the swap is compared with the
    one that loading the same folder gives.

    ## Fix
    By hand: load the adapter with `load_adapter` and choose it with `set_adapter`; keep the folder
    that it came from instead of saving it again.

    ## Links
    https://github.com/huggingface/peft/issues/3738, https://github.com/huggingface/peft/issues/3581
    """

    code = "LD636"
    name = "swapped-adapter-rescaled"
    summary = "An adapter that is swapped in is scaled in another way than when it is loaded."
    depth = "meta"
    descriptions = (
        Symptom(r"\bhot-?swap\w*\b.{0,160}\b(?:scaling|rank_pattern|alpha_pattern|lora_alpha)\b"),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/swapped_with_rank_pattern.py",
            depth="meta",
            requires={"peft": ">=0.16"},
            why="the rank of q_proj is in the rank pattern",
        ),
        Example(
            "healthy",
            "tests/scripts/swapped_alike.py",
            depth="meta",
            requires={"peft": ">=0.16"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for fault, step in faults(case, "rescaled"):
            count, _, where = fault.detail.partition(": ")
            saves = step.method == "save_pretrained"
            does = "saves it with a config that scales" if saves else "scales"
            yield self.finding(
                "error",
                f"{step.code} {does} the swapped adapter {fault.adapters[0]!r} with the wrong "
                f"factor in {count} layers ({where}).",
                location=at(step),
                evidence=(
                    call(step),
                    Measurement(
                        "wrong factors", fault.detail, "after the call, against its own folder"
                    ),
                ),
                proof=PROOF,
                fixes=(Fix(_KEEP if saves else _LOAD, "manual"),),
            )


_LOAD = (
    "Load the adapter under a name of its own (load_adapter) and choose it (set_adapter), instead "
    "of swapping it in."
)
_KEEP = "Keep the folder that the adapter came from, instead of saving it again after the swap."
