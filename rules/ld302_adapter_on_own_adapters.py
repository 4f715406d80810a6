"""LD302: an adapter on a model that has built-in adapters."""

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
    Patch,
    Proof,
    Rule,
    Severity,
    Symptom,
    quoted,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import AdapterState, BuiltIn


class AdapterOnOwnAdapters(Rule):
    """The recipe adds a PEFT adapter to a model that creates adapters of its own in its
    constructor.

    ## What happens
    Both are in the same layers, and which one trains depends on the release. PEFT 0.7 trains the
    built-in adapter and not the new one. Later releases silently disable the built-in one, so
    training starts from a different model than the one that was loaded. PEFT 0.21 restores the
    `requires_grad` that every weight had before, which after `from_pretrained` of transformers 5 is
    True for all: the whole model is trained. Only the new adapter is saved.

    ## Why
    `get_peft_model` was written for models without adapters; layers that already have some get
    another one. Phi-4-multimodal, for example, has built-in adapters `vision` and `speech`.

    ## Versions
    All versions of PEFT, with different effects; the evidence shows what the installed one does.

    ## Fix
    A patch that trains only the new adapter and keeps the built-in ones active and frozen. It
    changes what the model learns, so it is applied only with `--unsafe-fixes`. Or do not add an
    adapter: set rank and targets in the model's own config and train the built-in adapters by their
    names. For a model whose forward switches adapters itself, such as Phi-4-multimodal, this is the
    only way.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD302"
    name = "adapter-on-own-adapters"
    summary = "An adapter on top of built-in ones: other weights train than intended."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\b(?:built-?in|own|existing) (?:\w+ )?(?:lora\w*|adapters?)\b.{0,80}"
            r"\b(?:not|never|frozen|identical|no effect|overwrit|lost)"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests.models:llama_with_own_adapters",
            {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "r": 4},
        ),
        Example(
            "healthy",
            "tests.models:llama_with_own_adapters",
            why="the built-in adapter is what is trained",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        built_in = structure.built_in
        if built_in is None or not built_in.wrapped or not structure.injection.ok:
            return
        brought = [state for state in built_in.adapters if state.brought]
        outer = next((state for state in built_in.adapters if not state.brought), None)
        silenced = [state for state in brought if (state.active_wrapped or 0) < state.active]
        along = [state for state in brought if state.trainable_wrapped]
        frozen = outer is not None and (outer.trainable_wrapped or 0) < outer.tensors
        if not (silenced or along or frozen or built_in.base_trainable):
            return
        severity: Severity = "error" if frozen or built_in.base_trainable else "warning"
        yield self.finding(
            severity,
            f"{structure.model_class} has built-in adapters "
            f"({', '.join(state.name for state in brought)}). With the recipe's adapter on top, "
            + "; ".join(_what_happens(built_in, outer, silenced, along, frozen))
            + ".",
            location=Location("recipe", "target_modules"),
            evidence=_evidence(built_in),
            proof=Proof("measured", ("PEFT wrapped the full-size model, with the adapters that "
                                    "it brings, on the meta device")),
            fixes=_fixes(brought),
            explains=(
                "attaches", "starts-at-base", "gradients", "adapters-move", "frozen-stay",
                "save-reload", "merge",
            ),
        )  # fmt: skip


def _what_happens(
    built_in: BuiltIn,
    outer: AdapterState | None,
    silenced: list[AdapterState],
    along: list[AdapterState],
    frozen: bool,
) -> Iterator[str]:
    if frozen and outer is not None:
        yield f"the recipe's adapter is not trained ({_tensors(outer)})"
    if along:
        yield f"{_list(along)} trained as well"
    if silenced:
        yield f"{_list(silenced)} disabled"
    if built_in.base_trainable:
        share = built_in.base_trainable_parameters / max(1, built_in.base_parameters)
        yield f"{share:.0%} of the base weights are trained"


def _list(states: list[AdapterState]) -> str:
    names = ", ".join(state.name for state in states)
    return f"adapter {names} is" if len(states) == 1 else f"adapters {names} are"


def _tensors(state: AdapterState) -> str:
    return f"{state.trainable_wrapped} of {state.tensors} tensors trainable"


def _evidence(built_in: BuiltIn) -> tuple[Measurement, ...]:
    lines = []
    for state in built_in.adapters:
        was = (
            f"before: {state.trainable} trainable, active in {state.active} layers; "
            if state.brought
            else ""
        )
        lines.append(
            Measurement(
                f"adapter {state.name}" + ("" if state.brought else " (the recipe's)"),
                f"{was}after: {_tensors(state)}, active in {state.active_wrapped} of "
                f"{state.layers} layers",
                "installed PEFT, meta device",
            )
        )
    if built_in.base_trainable:
        lines.append(
            Measurement("base weights left trainable", quoted(built_in.base_trainable, 4),
                    "installed PEFT, meta device")
        )  # fmt: skip
    if built_in.loading_unfreezes:
        lines.append(
            Measurement("from_pretrained", "makes every weight trainable again",
                    "installed transformers, run on a model of two weights")
        )  # fmt: skip
    return tuple(lines)


def _fixes(brought: list[AdapterState]) -> tuple[Fix, ...]:
    names = ", ".join(state.name for state in brought)
    return (
        Fix(
            f"Train only the recipe's adapter, with {names} as loaded and frozen "
            "(lora_doctor.apply as the first line of the training script).",
            "unsafe",
            patch=Patch("outer_adapter_only"),
        ),
        Fix(
            f"Or train the built-in ones ({names}): set their rank and targets in the model's "
            "config, do not call get_peft_model, and check a recipe without adapter keys: "
            "LD502 then reports what else would be trained, and its patch trains only the "
            "adapters.",
            "manual",
        ),
    )
