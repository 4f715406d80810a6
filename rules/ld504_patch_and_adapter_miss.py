"""LD504: a method replaced on one module is bypassed under PEFT, or bypasses the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
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
from lora_doctor.rules._source_line import without_folders

if TYPE_CHECKING:
    from lora_doctor.rule_api import InstancePatch

#: What fails when adapters are passed by: they learn nothing, and what is merged is not what ran.
CONSEQUENCES = (
    "forward", "starts-at-base", "gradients", "steps", "adapters-move", "loss-falls",
    "save-reload", "merge",
)  # fmt: skip


class PatchAndAdapterMiss(Rule):
    """A method replaced on one object (`model.forward = ...`) is no longer called once PEFT has
    wrapped the model, or it runs and bypasses the adapter.

    ## What happens
    Nothing is raised. A function set on the `PeftModel` under the name of a method that the inner
    model calls on itself is never called. A `forward` that was created before `get_peft_model` and
    holds a reference to a layer (`q = attention.q_proj`) keeps calling that layer, and the adapter
    around it gets no gradient. A function set on the adapted layer itself replaces the adapter's
    forward. A patched layer that is trained as a copy (`modules_to_save`) runs the weights of the
    original.

    ## Why
    Python looks up a method on the object that it is called on. PEFT wraps objects in other
    objects: the names inside stay the same, but a layer that a function holds a reference to is no
    longer the one that the model uses.

    ## Versions
    All. Patches of a class (`Attention.forward = ...`) are not affected, nor are those of a module
    that look their layers up when they are called (`self.q_proj`), nor accelerate's hooks.

    ## Fix
    By hand: set the patch on the object that is called (`model.get_base_model()`), look up layers
    at call time, or patch the class before the model is created.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/low_level_api
    """

    code = "LD504"
    name = "patch-and-adapter-miss"
    summary = "A patched method is not called under PEFT, or bypasses the adapter."
    depth = "tiny"
    symptoms = (Symptom(r"element 0 of (?:tensors|variables) does not require grad", weight=-1),)
    examples = (
        Example(
            "broken",
            "tests.models:patch_on_the_wrapper",
            why="put on the PeftModel; the model inside calls its own",
        ),
        Example(
            "broken",
            "tests.models:patch_that_holds_layers",
            {"target_modules": ["q_proj", "v_proj"], "r": 4},
            why="made before get_peft_model, and holds the layers that are adapted afterwards",
        ),
        Example(
            "healthy",
            "tests.models:patch_that_looks_layers_up",
            {"target_modules": ["q_proj", "v_proj"], "r": 4},
        ),
        Example(
            "healthy",
            "tests.models:patch_on_the_base",
            why="on the model inside, and on a layer that LoRA is put around: both are called",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        verification = case.verification
        trained = verification.check("forward")
        if trained is None or trained.status == "skipped":
            raise EvidenceError(verification.reason or "no forward with adapters was run")
        found = verification.observations.instance_patches
        bypassed = [patch for patch in found if patch.bypassed]
        if bypassed:
            yield self._bypassed(bypassed, verification.depth)
        lost = [patch for patch in found if patch not in bypassed and _is_lost(patch)]
        if lost and trained.status == "passed":
            yield self._lost(lost, verification.depth)

    def _bypassed(self, patches: list[InstancePatch], depth: str) -> Finding:
        layers = list(dict.fromkeys(path for patch in patches for path in patch.bypassed))
        return self.finding(
            "error",
            f"{_names(patches)} run{'s' if len(patches) == 1 else ''} without the adapter of "
            f"{len(layers)} layer{'s' if len(layers) > 1 else ''} ({quoted(layers, 3)}), which "
            "learns nothing.",
            location=Location("module", patches[0].path or "model"),
            evidence=tuple(_measures(patches, depth)),
            proof=Proof("executed", f"calls were counted in the {depth} model's training forward"),
            fixes=_ways_out(patches[0]),
            explains=CONSEQUENCES,
        )

    def _lost(self, patches: list[InstancePatch], depth: str) -> Finding:
        alone = len(patches) == 1
        return self.finding(
            "warning",
            f"{_names(patches)} {'is' if alone else 'are'} no longer called: "
            + (
                f"{'it is' if alone else 'they are'} set on PEFT's wrapper, while the inner model "
                "calls its own method."
                if patches[0].kind == "wrapper"
                else "the adapters run without it."
            ),
            location=Location("module", patches[0].path or "model"),
            evidence=tuple(_measures(patches, depth)),
            proof=Proof("executed", f"calls were counted in the {depth} model's training forward"),
            fixes=(
                Fix(
                    f"Set it on the inner model: model.get_base_model().{patches[0].name} = "
                    "types.MethodType(function, model.get_base_model()); or before "
                    "get_peft_model, or on the class."
                    if patches[0].kind == "wrapper"
                    else "Patch the class, or use an adapter method that calls the layer it "
                    "wraps (LoRA does).",
                    "manual",
                ),
            ),
        )


def _ways_out(patch: InstancePatch) -> tuple[Fix, ...]:
    if patch.path in patch.bypassed:  # on the adapted layer itself
        return (
            Fix(
                "Set the function on the layer inside the adapter, "
                f"{patch.path}.base_layer.{patch.name}, or before get_peft_model.",
                "manual",
            ),
        )
    return (
        Fix(
            "Look up layers in the function at call time (self.q_proj) instead of keeping "
            "references, or patch the class before the model is created.",
            "manual",
        ),
    )


def _is_lost(patch: InstancePatch) -> bool:
    """Not called, where it was called before or where others were called in its place."""
    if patch.calls:
        return False
    if patch.kind == "wrapper":
        return patch.inner_calls > 0
    return patch.calls_before > 0


def _names(patches: list[InstancePatch]) -> str:
    names = [f"{_short(patch.path)}{patch.name}" for patch in patches]
    return f"The patched {quoted(names, 2)}"


def _short(path: str) -> str:
    return f"{path}." if path else ""


def _measures(patches: list[InstancePatch], depth: str) -> Iterator[Measurement]:
    source = f"{depth} model, executed"
    for patch in patches[:4]:
        where = without_folders(patch.source) or "not Python"
        yield Measurement(f"{_short(patch.path)}{patch.name}", f"set by {where}", "the module")
        yield Measurement("calls without adapters", patch.calls_before, source)
        yield Measurement("calls with adapters", patch.calls, source)
        if patch.kind == "wrapper":
            yield Measurement("calls of the model's own method", patch.inner_calls, source)
        if patch.bypassed:
            yield Measurement("adapters that were not called", quoted(patch.bypassed, 4), source)
