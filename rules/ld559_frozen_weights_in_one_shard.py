"""LD559: FSDP 1 would flatten frozen and trainable weights into one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Proof, Rule, Symptom
from lora_doctor.rules._dry_run_script import FSDP_LOOP, MODEL
from lora_doctor.rules._processes import SOURCE, at, failure, raised, together

_REFUSED = (
    r"Must flatten tensors with uniform `?requires_grad`? when `?use_orig_params=False`?",
    r"`?FlatParameter`? requires uniform `?requires_grad",
)
_PREPARED = FSDP_LOOP.replace("PREPARED", "model")


class FrozenWeightsInOneShard(Rule):
    """FSDP version 1 would flatten adapters and the frozen weights beside them into one parameter.

    ## What happens
    ``ValueError: Must flatten tensors with uniform `requires_grad` when `use_orig_params=False` ``
    when the model is wrapped.

    ## Why
    With `use_orig_params=False`, FSDP 1 replaces the parameters of each wrapped module with one,
    which is either trained or frozen. Every layer with LoRA has both kinds. PEFT's
    `fsdp_auto_wrap_policy` wraps the matrices of the adapters by themselves; the Trainer uses it, a
    loop of your own or a policy of your own does not.

    ## Versions
    All versions of torch with FSDP 1; `use_orig_params` is False by default there, and True in
    accelerate's configuration. FSDP 2 (`fsdp_version: 2`) flattens nothing.

    ## Fix
    By hand: `use_orig_params=True` (`fsdp_use_orig_params: true` in accelerate's configuration), or
    `peft.utils.other.fsdp_auto_wrap_policy(model)` as the wrapping policy, or FSDP 2.

    ## Links
    https://huggingface.co/docs/peft/accelerate/fsdp
    """

    code = "LD559"
    name = "frozen-weights-in-one-shard"
    summary = "FSDP 1 would flatten frozen and trainable weights into one."
    depth = "static"
    symptoms = (
        Symptom(_REFUSED[0]),
        Symptom(_REFUSED[1], "PyTorch 2.0 and before"),
    )
    told_as = ("FSDP with LoRA fails because only a part of the parameters requires gradients.",)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + _PREPARED.replace("use_orig_params=True", "use_orig_params=False"),
            processes=2,
            why="adapters beside frozen weights, and use_orig_params=False",
        ),
        Example("healthy", "", script=MODEL + _PREPARED, processes=2),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        failed = failure(case)
        if failed is None:
            return
        found, error = failed
        if not any(re.search(one, error.message) for one in _REFUSED):
            return
        yield self.finding(
            "error",
            "FSDP 1 would flatten adapters and frozen weights into one parameter.",
            location=at(case.dry_run, error.file, error.line),
            evidence=(
                raised(error),
                together(found),
                Measurement("use_orig_params", "false", "the exception"),
            ),
            proof=Proof("executed", SOURCE),
            fixes=(
                Fix(
                    (
                        "Set use_orig_params=True, wrap with PEFT's fsdp_auto_wrap_policy(model), "
                        "or shard with FSDP 2 (fsdp_version: 2)."
                    ),
                    "manual",
                ),
            ),
        )
