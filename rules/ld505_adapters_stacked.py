"""LD505: get_peft_model was called more than once, and adapters are lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Severity,
    Symptom,
    quoted,
)
from lora_doctor.rules._prompt_learning import METHODS

if TYPE_CHECKING:
    from lora_doctor.rule_api import Stacked, StackedAdapter

#: All that can fail when adapters are frozen, renamed or in layers that the config does not name.
CONSEQUENCES = (
    "attaches", "forward", "starts-at-base", "gradients", "adapters-move", "loss-falls",
    "save-reload", "merge",
)  # fmt: skip


class AdaptersStacked(Rule):
    """`get_peft_model` was called on a model that had an adapter already.

    ## What happens
    LoRA and then prompt tuning: LoRA is frozen, and only the prompt is saved. The other way round,
    the prompt is bypassed. LoRA twice on a `PeftModel`: the names of all saved weights get longer,
    and loading them restores the untrained model, with a warning about missing keys at most. Twice
    on the same base model: the second adapter replaces the first where both have the same name, and
    what the first one has in other layers is trained too and lost in loading.

    ## Why
    `get_peft_model` modifies the model in place. The second call finds the layers of the first: it
    freezes everything else, replaces adapters with the same name, and saves only its own. A trainer
    that gets a `peft_config` makes such a call itself.

    ## Versions
    All versions of PEFT. From 0.15 on it warns ("modify a model with PEFT for a second time").

    ## Fix
    By hand, because a line of the script has to be removed. Two adapters of the same method in one
    model: `model.add_adapter(name, config)` and `set_adapter`. Different methods that adapt layers
    (LoRA, LoHa, LoKr, OFT) together: `get_peft_model(model, config, mixed=True)` and `add_adapter`;
    PEFT cannot save such a model, only merge it. A prompt cannot be combined: keep one of the two,
    or train the adapter, `merge_and_unload()`, and add the prompt to the merged model.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/mixed_models
    https://github.com/huggingface/cookbook/pull/338
    """

    code = "LD505"
    name = "adapters-stacked"
    summary = "get_peft_model was called twice: an adapter is frozen, replaced or not saved."
    depth = "meta"
    symptoms = (
        Symptom(r"trying to modify a model with PEFT for a second time"),
        Symptom(r"Already found a `peft_config` attribute in the model"),
        Symptom(r"Found missing adapter keys while loading the checkpoint", weight=-1),
        Symptom(r"Cannot combine adapters with different peft types"),
        Symptom(
            r"\b\w+ supports only 1 (?:trainable adapter|adapter with bias)\. When using multiple"
        ),
        Symptom(
            r"(?:PiSSA|CorDA|OLoRA) changes the base weights of the model and should thus not be"
        ),
        Symptom(r"property 'peft_config' of 'PeftModel\w*' object has no deleter"),
    )
    descriptions = (
        Symptom(
            r"\b(?:peft|lora|adapters?|get_peft_model)\b.{0,30}\b(?:applied|wrapped"
            r"|called|added|injected) twice"
        ),
        Symptom(
            r"\b(?:adapters?|lora) (?:is |are )?(?:stacked|on top of (?:each other"
            r"|one another))"
        ),
        Symptom(r"\b(?:call\w*|ran|run) get_peft_model twice\b"),
    )
    told_as = ("get_peft_model was called twice, the adapters are stacked.",)
    examples = (
        Example(
            "broken",
            "tests.models:lora_then_prompt",
            why="the report's own plan: LoRA is frozen and not saved",
        ),
        Example("broken", "tests.models:lora_in_lora", why="every saved weight gets another name"),
        Example(
            "broken",
            "tests.models:lora_twice_on_one_base",
            why="the first adapter is replaced, and left over where the second one is not",
        ),
        Example("healthy", "tests.models:lora_and_another", why="add_adapter, one active"),
        Example("healthy", "tests.models:prompt_on_merged", why="merged first"),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        stacked = case.structure.stacked
        if stacked is None:
            return
        lost = [item for item in stacked.members if _is_lost(item)]
        severity: Severity = "error" if lost or stacked.renamed or stacked.leftovers else "warning"
        yield self.finding(
            severity,
            "get_peft_model was called more than once: " + "; ".join(_described(stacked)) + ".",
            location=Location("module", _place(stacked)),
            evidence=_evidence(case, stacked),
            proof=Proof("measured", "requires_grad, active adapters and saved names were read "
                                    "from the wrapped model"),
            fixes=_fixes(stacked),
            explains=CONSEQUENCES,
        )  # fmt: skip


def _place(stacked: Stacked) -> str:
    """The wrappers from outside, and where they are when they are not the model itself."""
    wrappers = " in ".join(stacked.wrappers)
    return f"{stacked.path}: {wrappers}" if stacked.path else wrappers


def _is_lost(item: StackedAdapter) -> bool:
    return not (item.trainable and item.active and item.saved)


def _described(stacked: Stacked) -> Iterator[str]:
    """What became of each adapter, in words."""
    for item in stacked.members:
        states = []
        if not item.trainable:
            states.append("frozen")
        elif not item.active:
            states.append("trainable but not in the forward")
        if not item.active and not item.trainable:
            states.append("not in the forward")
        if not item.saved:
            states.append("not saved")
        if states and _is_lost(item):
            count = f"{item.tensors} tensor{'s' if item.tensors > 1 else ''}"
            words = " and ".join(filter(None, (", ".join(states[:-1]), states[-1])))
            yield f"{item.method} {item.name} ({count}) is {words}"
    if stacked.leftovers:
        yield (
            f"{stacked.leftover_tensors} tensors in {quoted(stacked.leftovers, 4)} are left "
            "over from an earlier call and will not be loaded, because the config does not "
            "name them"
        )
    if stacked.renamed:
        yield (
            f"{stacked.renamed} of {stacked.saved_names} saved tensors have a name that "
            "loading does not expect"
        )
    if not (stacked.leftovers or stacked.renamed or any(map(_is_lost, stacked.members))):
        yield f"the model is wrapped {len(stacked.wrappers)} times"


def _evidence(case: Case, stacked: Stacked) -> tuple[Measurement, ...]:
    lines = [Measurement("wrappers, outermost first", " in ".join(stacked.wrappers), "the model")]
    for item in stacked.members:
        lines.append(
            Measurement(
                f"{item.method} {item.name}",
                f"{item.trainable} of {item.tensors} tensors trainable, {item.saved} saved, "
                f"{'active' if item.active else 'not active'}",
                "requires_grad, PEFT's own state dict",
            )
        )
    if stacked.renamed_example:
        lines.append(Measurement("saved as", stacked.renamed_example, "PEFT's own state dict"))
    if stacked.leftovers:
        lines.append(
            Measurement("not in target_modules", quoted(stacked.leftovers, 6), "PEFT's own matcher")
        )
    if case.reaches("tiny") and case.has("verification"):
        check = case.verification.check("save-reload")
        if check is not None and check.status == "failed":
            lines.append(
                Measurement("saved and reloaded", check.detail or str(check.value),
                        "the contract, executed")
            )  # fmt: skip
    return tuple(lines)


def _fixes(stacked: Stacked) -> tuple[Fix, ...]:
    methods = {item.method for item in stacked.members}
    prompts = sorted(methods & set(METHODS))
    layers = sorted(methods - set(METHODS))
    if prompts and layers:
        return (
            Fix(
                f"Keep one of the two, {' or '.join((*layers, *prompts))}, with a single "
                "get_peft_model on the loaded model.",
                "manual",
            ),
            Fix(
                f"Or one after the other: train {', '.join(layers)}, save it, then model = "
                "model.merge_and_unload() and get_peft_model(model, prompt config). The prompt "
                "then belongs to the merged model, which must be saved as well.",
                "manual",
            ),
        )
    fixes = [
        Fix(
            "Remove the second call (a trainer that gets peft_config makes one itself); if you "
            "want two adapters, model.add_adapter(NAME, config) and model.set_adapter(NAME): "
            "each is saved in a folder of its own.",
            "manual",
        )
    ]
    if len(layers) > 1:
        fixes.append(
            Fix(
                f"For {' and '.join(layers)} at once: get_peft_model(model, config, mixed=True), "
                "add_adapter, set_adapter([…]). PEFT cannot save such a model: merge_and_unload() "
                "and save the whole.",
                "manual",
            )
        )
    return tuple(fixes)
