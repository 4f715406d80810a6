"""LD403: an attention implementation that the model's own code speaks against."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    REMOVE,
    AttentionReading,
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
    quoted,
)
from lora_doctor.rules._ablation import judged

_KEY = "attn_implementation"
_TARGETS = {"target_modules": ["q_proj", "v_proj"]}
_EVERYTHING = (
    "builds", "attaches", "forward", "starts-at-base", "loss-finite", "gradients", "steps",
    "adapters-move", "frozen-stay", "loss-falls", "save-reload", "merge",
)  # fmt: skip


class AttentionAgainstTheModelsAdvice(Rule):
    """The attention implementation is one that the model's own code warns against in training,
    does not support, or that leaves out a part of the model's attention.

    ## What happens
    A warning in the log of the first step (`It is strongly recommended to train Gemma3 models with
    the eager attention implementation instead of sdpa`), and training goes on. Or no word at all:
    the model hands the cap of its attention scores (`softcap`) to an implementation that does not
    know it, and trains against scores without one. Or a refusal, in the forward or in loading.

    ## Why
    Without `attn_implementation` transformers takes `sdpa` where the class allows it. That function
    takes what it does not know among `**kwargs` and drops it. What is learnt on top of such a
    model fits a model that computes something else than the one that was pretrained, and than the
    one that will serve the adapter.

    ## Versions
    Gemma 2 with `sdpa`: a warning in transformers 4.44 and 4.53, not a word in 4.57, refused in 5.
    Gemma 3 with `sdpa`: a warning in 4.53, taken back in 4.57; its scores have no cap.

    ## Fix
    `attn_implementation: eager`: computes all of it, and takes more memory and time, which grow
    with the square of the length. `flash_attention_2` knows the cap too, on a GPU that has it.

    ## Links
    https://huggingface.co/docs/transformers/attention_interface
    """

    code = "LD403"
    name = "attention-against-the-models-advice"
    summary = "The model's own code speaks against this attention implementation in training."
    depth = "meta"
    symptoms = (
        Symptom(r"strongly recommended to train \S+ models with the `?eager`? attention"),
        Symptom(r"`?sdpa`? attention does not support `?softcap"),
        Symptom(r"does not support an attention implementation through"),
    )
    examples = (
        Example(
            "broken",
            "arch:gemma2",
            _TARGETS,
            requires={"transformers": ">=4.42,<5"},
            why="transformers' own choice is sdpa, which does not know the cap of its scores",
        ),
        Example(
            "broken",
            "arch:gemma2",
            {**_TARGETS, _KEY: "sdpa"},
            requires={"transformers": ">=5"},
            why="refused by the class",
        ),
        Example("healthy", "arch:llama", {**_TARGETS, _KEY: "sdpa"}),
        Example(
            "healthy",
            "arch:gemma2",
            {**_TARGETS, _KEY: "eager"},
            requires={"transformers": ">=4.42"},
        ),
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
            yield from self._refused(case)
            return
        if not case.reaches("tiny"):
            raise EvidenceError(f"needs --depth tiny; this run stops at {case.settings.depth}")
        seen = judged(case)
        readings = seen.observations.attention
        if not readings:
            failed = seen.check("forward")
            if failed is None or failed.status == "skipped":
                raise EvidenceError("the training contract stopped before the first forward")
            return
        dropped = [item for item in readings if item.dropped]
        raised = seen.failure is not None and seen.failure.check == "forward"
        source = f"{seen.depth} model, executed"
        evidence = [Measurement(_KEY, _implementation(readings), _origin(case))]
        for item in readings:
            what = "not taken by it" if item.dropped else "said by the model's code"
            where = item.path or "the model"
            evidence.append(
                Measurement(f"{what}, at {where}", item.dropped or item.warning, source)
            )
        if raised and seen.failure is not None:
            evidence.append(
                Measurement("forward", f"{seen.failure.type}: {seen.failure.message}", source)
            )
        yield self.finding(
            "error" if raised and dropped else "warning",
            _message(readings, dropped),
            location=Location("recipe", _KEY),
            evidence=tuple(evidence),
            proof=Proof("executed", "seen in the first training forward"),
            fixes=_fixes(case),
            explains=_EVERYTHING if raised and dropped else (),
        )

    def _refused(self, case: Case) -> Iterator[Finding]:
        """The class cannot be built with the implementation that was asked for, and can without."""
        reason = case.why_not("structure")
        asked = case.recipe.get(_KEY)
        without = (Edit(_KEY, REMOVE),)
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
            location=Location("recipe", _KEY),
            evidence=(
                Measurement("built with it", reason, "the real class on the meta device"),
                Measurement("built without", "yes", "the real class on the meta device"),
            ),
            proof=Proof("executed", "the class was built with and without it"),
            fixes=(Fix(f"Leave the choice to transformers: drop {_KEY}.", "unsafe", without),),
            explains=_EVERYTHING,
        )


def _implementation(readings: tuple[AttentionReading, ...]) -> str:
    names = dict.fromkeys(item.implementation for item in readings if item.implementation)
    return ", ".join(names) or "unknown"


def _origin(case: Case) -> str:
    return "recipe" if _KEY in case.recipe else "not set: transformers' own choice"


def _message(readings: tuple[AttentionReading, ...], dropped: list[AttentionReading]) -> str:
    name = _implementation(readings)
    if dropped:
        arguments = quoted([item.dropped for item in dropped], 3)
        return (
            f"{name} attention leaves out {arguments}, which the model hands to it: trained like "
            "this, the model is another one than was pretrained."
        )
    return f"The model's own code advises against training with {name} attention."


def _fixes(case: Case) -> tuple[Fix, ...]:
    if case.source.kind in ("module", "factory"):
        return (Fix('Load the model with attn_implementation="eager" where it is made.', "manual"),)
    return (
        Fix(
            "Compute attention as the model was trained: attn_implementation eager; it takes more "
            "memory and time.",
            "unsafe",
            (Edit(_KEY, "eager"),),
        ),
    )
