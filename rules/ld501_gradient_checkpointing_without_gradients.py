"""LD501: gradient checkpointing that leaves adapters without gradient, or that the model does not
support."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_doctor.rule_api import (
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
from lora_doctor.rules._ablation import judged, learning, with_edits

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure, Verification

_LEARNING = ("gradients", "steps", "adapters-move", "loss-falls")
_EVERYTHING = ("forward", "starts-at-base", "loss-finite", *_LEARNING, "save-reload", "merge")
_OFF = (Edit("gradient_checkpointing", False),)


class GradientCheckpointingWithoutGradients(Rule):
    """Reentrant gradient checkpointing drops the gradients of layers whose inputs do not require
    gradients.

    ## What happens
    The backward raises `element 0 of tensors does not require grad and does not have a grad_fn`.
    Or, when something after the checkpointed layers is trained too (`modules_to_save`, LoRA on
    `lm_head`), training runs: the adapters inside get no gradient, and the only sign is a
    `UserWarning: None of the inputs have requires_grad=True`. A model that has no gradient
    checkpointing raises `... does not support gradient checkpointing` (`activation checkpointing`
    in transformers 5).

    With WavLM the first backward of reentrant checkpointing never ends: the process hangs, and its
    memory grows.

    ## Why
    Reentrant checkpointing runs a layer without recording it, and runs it again with recording in
    the backward only if one of its inputs requires a gradient. With frozen embeddings no input
    does, whether or not the layer has adapters. `enable_input_require_grads` makes the output of
    the input embeddings require one, which helps layers fed by them but not an encoder of images or
    audio.

    A layer that returns a tensor which it was given by keyword (WavLM's position bias, which is
    handed from layer to layer) becomes the origin of that tensor. Its backward runs the layer
    again, with that tensor, and so needs its own backward.

    ## Versions
    transformers 4.x checkpoints reentrantly unless told otherwise. From 5.0 on the default is
    non-reentrant; recipes that ask for `use_reentrant: true` still break Whisper, ViT and other
    models that do not start at token embeddings.

    ## Fix
    `gradient_checkpointing_kwargs: {use_reentrant: false}`: the same results and the same memory,
    without the condition on the inputs. A model that does not support checkpointing must be trained
    without it, which takes more memory.

    ## Links
    https://docs.pytorch.org/docs/stable/checkpoint.html
    """

    code = "LD501"
    name = "gradient-checkpointing-without-gradients"
    summary = (
        "Gradient checkpointing drops the adapters' gradients, or the model does not support it."
    )
    depth = "meta"
    symptoms = (
        Symptom(r"element 0 of (?:tensors|variables) does not require grad", weight=1),
        Symptom(r"One of the differentiated Tensors does not require grad"),
        Symptom(
            r"element 0 of (?:tensors|variables) does not require grad",
            context=r"requires_grad=True|(?i:checkpoint)ing",
            weight=1,
        ),
        Symptom(
            r"'?grad_norm'?:\s*'?0(?:\.0+)?(?![.\d])",
            unless=r"grad_norm'?:\s*'?(?:0\.0*[1-9]|[1-9])",
        ),
        Symptom(r"None of the inputs have requires_grad=True", aside=True),
        Symptom(r"does not support (gradient|activation) checkpointing"),
        Symptom(r"is not compatible with gradient checkpointing"),
        Symptom(r"\(0/\w+ params have grad available\)", "Megatron"),
    )
    descriptions = (
        Symptom(
            r"\bgrad(?:ient)?[_ ]norm\W+(?:(?:is|stays?|remains?|always|still)\W+){0,3}"
            r"(?:0(?:\.0+)?|zero)(?!\.?\d)",
            weight=-1,
        ),
        Symptom(
            r"\bcheckpointing\b.{0,80}\b(?:no|zero|without|los\w+|cuts? off"
            r"|missing|none) .{0,20}\bgrad"
        ),
        Symptom(r"\b(?:no|zero|without|missing) grad(?:ient)?s?\b.{0,80}\bcheckpointing\b"),
        Symptom(
            r"\bgradient.checkpoint\w*\b.{0,60}\b(?:all )?grad(?:ient)?s?\b.{0,20}"
            r"\b(?:None|zero|vanish\w*|missing)\b"
        ),
        Symptom(r"\blora_B\b.{0,40}\bnon-?zero\b"),
        Symptom(
            r"\A(?=.*\bgradient.?checkpoint)(?=.*\b(?:lora|peft|adapters?))(?=.*\b(?:(?:not|ne"
            r"ver|n't) (?:be(?:ing|en)? )?(?:trained|updated|learn\w*)|no grad\w*|grad\w* (?:i"
            r"s|are) (?:None|zero))\b).+"
        ),
        Symptom(
            r"\benable_input_require_grads\b\W{0,4}(?:is )?(?:missing|never called|not called)"
        ),
    )
    told_as = (
        "All gradients are None with gradient checkpointing, without it the adapters learn.",
        "Gradient checkpointing blocks the updates of the adapters.",
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "gradient_checkpointing": True},
            requires={"transformers": "<5"},
            why="4.x checkpoints reentrantly when nothing is said",
        ),
        Example(
            "broken",
            "arch:whisper",
            {
                "target_modules": ["q_proj", "v_proj"],
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
            },
            why="its encoder starts at sound, not at embeddings that could be made to need one",
        ),
        Example(
            "broken",
            "arch:wavlm",
            {
                "model_class": "AutoModelForCTC",
                "target_modules": ["intermediate_dense", "output_dense"],
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
            },
            requires={"transformers": ">=4.57"},
            why="its layers hand on a position bias, and the backward calls itself",
        ),
        Example(
            "broken",
            "arch:llama",
            {
                "target_modules": ["q_proj", "v_proj"],
                "modules_to_save": ["lm_head"],
                "gradient_checkpointing": True,
            },
            requires={"transformers": "<5"},
            why="the head learns, so that the backward runs and the adapters are left out silently",
        ),
        Example(
            "broken",
            "arch:openai-gpt",
            {"target_modules": ["c_attn"], "gradient_checkpointing": True},
            why="a class without checkpointing",
        ),
        Example(
            "healthy",
            "arch:llama",
            {
                "target_modules": ["q_proj", "v_proj"],
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": False},
            },
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "gradient_checkpointing": True},
            requires={"transformers": ">=5"},
            why="not reentrant unless asked for",
        ),
        Example(
            "healthy",
            "arch:llama",
            {
                "target_modules": ["q_proj", "v_proj"],
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
                "enable_input_require_grads": True,
            },
            why="the embeddings' output needs a gradient, as the frameworks and scripts see to",
        ),
        Example("healthy", "arch:openai-gpt", {"target_modules": ["c_attn"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.recipe.get("gradient_checkpointing"):
            return
        structure = case.structure
        if not structure.supports_gradient_checkpointing:
            yield self._unsupported(case, structure)
            return
        seen = judged(case)
        failed = seen.check("gradients")
        if failed is None or failed.status == "skipped":
            raise EvidenceError("the training contract stopped before the first backward")
        if failed.status == "passed":
            return
        options: dict[str, Any] = dict(case.recipe.get("gradient_checkpointing_kwargs") or {})
        if options.get("use_reentrant") is not False:
            edits = (Edit("gradient_checkpointing_kwargs", {**options, "use_reentrant": False}),)
            other = with_edits(case, edits)
            if _better(other, seen):
                fix = Fix("Use non-reentrant checkpointing: use_reentrant: false.", "safe", edits)
                yield self._cut_off(seen, other, options, "with use_reentrant: false", fix)
                return
        without = with_edits(case, _OFF)
        if _better(without, seen):
            yield self._cut_off(seen, without, options, "without checkpointing", _switch_off())

    def _cut_off(
        self, seen: Verification, other: Verification, options: dict[str, Any], how: str, fix: Fix
    ) -> Finding:
        layers = sum(group.count for group in other.adapters)
        said = f"{seen.failure.type}: {seen.failure.message}" if seen.failure else ""
        source = f"{seen.depth} model, executed"
        asked = repr(options) if options else "not set: the default of the installed transformers"
        evidence = [
            Measurement("gradient_checkpointing_kwargs", asked, "recipe"),
            Measurement("adapted layers with a gradient", f"{learning(seen)} of {layers}", source),
            Measurement(f"the same {how}", f"{learning(other)} of {layers}", source),
        ]
        if said:
            evidence.append(Measurement("backward", said, source))
        happens = (
            "the first backward never ends, because a checkpointed layer calls itself; "
            f"{how}, {learning(other)} of {layers} adapted layers learn"
            if _endless(seen)
            else f"{layers - learning(seen)} of {layers} adapted layers get no gradient; {how}, "
            f"{layers - learning(other)}"
        )
        return self.finding(
            "error",
            f"With this gradient checkpointing {happens}.",
            location=Location("recipe", "gradient_checkpointing_kwargs" if options
                              else "gradient_checkpointing"),
            evidence=tuple(evidence),
            proof=Proof("executed", "the same recipe was run both ways"),
            fixes=(fix,),
            explains=_LEARNING,
        )  # fmt: skip

    def _unsupported(self, case: Case, structure: Structure) -> Finding:
        evidence = [
            Measurement(
                f"{structure.model_class}.supports_gradient_checkpointing", False, "its class"
            )
        ]
        proof = Proof("measured", "declared by the class itself")
        if case.reaches("tiny") and case.has("verification"):
            failure = case.verification.failure
            if failure is not None and "checkpointing" in failure.message:
                evidence.append(Measurement("enabling it", f"{failure.type}: {failure.message}",
                                        f"{case.settings.depth} model, executed"))  # fmt: skip
                proof = Proof("executed", "enabling it raised this")
        return self.finding(
            "error",
            f"{structure.model_class} does not support gradient checkpointing: enabling "
            "it raises an error.",
            location=Location("recipe", "gradient_checkpointing"),
            evidence=tuple(evidence),
            proof=proof,
            fixes=(_switch_off(),),
            explains=_EVERYTHING,
        )


def _better(other: Verification, seen: Verification) -> bool:
    """More layers learn, or the backward comes to an end."""
    return learning(other) > learning(seen) or (_endless(seen) and not _endless(other))


def _endless(seen: Verification) -> bool:
    return seen.failure is not None and seen.failure.type == "EndlessRecomputation"


def _switch_off() -> Fix:
    return Fix("Train without gradient checkpointing: takes more memory.", "unsafe", _OFF)
