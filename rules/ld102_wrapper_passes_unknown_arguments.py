"""LD102: PEFT's wrapper passes keyword arguments that this forward does not take."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Patch,
    Proof,
    Recipe,
    Rule,
    Symptom,
)
from lora_doctor.rules._prompt_learning import METHODS as PROMPT_METHODS

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure

#: Task types whose classes have a head of their own, with which a base class can be replaced.
HAS_A_HEAD_CLASS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
#: Flags on the answer: decorators of transformers take them out of ``**kwargs``.
FLAGS = ("output_attentions", "output_hidden_states", "return_dict")
CONSEQUENCES = (
    "forward", "starts-at-base", "loss-finite", "gradients", "steps", "adapters-move",
    "loss-falls", "save-reload", "merge",
)  # fmt: skip
#: What PEFT's wrappers pass on by themselves.
_SENT = (
    "input_ids|inputs_embeds|labels|decoder_input_ids|decoder_attention_mask|"
    "decoder_inputs_embeds|start_positions|end_positions|task_ids|token_type_ids|"
    "output_attentions|output_hidden_states|return_dict"
)
#: How a forward fails at an argument that it did not expect, and what has happened then.
_ARGUMENT_ERRORS = (
    (
        re.compile(r"unexpected keyword argument '(?P<name>\w+)'"),
        "passes on to a module that does not accept it",
    ),
    (
        re.compile(r"multiple values for (?:keyword )?argument '(?P<name>\w+)'"),
        "also sets itself",
    ),
    (re.compile(r"^'(?P<name>\w+)'$"), "passes on to a module that looks for its own and fails"),
)


@dataclass(frozen=True)
class _Seen:
    """The forward that failed: the exception, the argument, and what the forward did with it."""

    error: str
    argument: str
    did: str


class WrapperPassesUnknownArguments(Rule):
    """The PEFT wrapper of this `task_type` calls the model with keyword arguments that its
    `forward` does not accept, or that the model itself passes on a second time.

    ## What happens
    The first forward raises `TypeError: ... got an unexpected keyword argument 'inputs_embeds'`, or
    `got multiple values for keyword argument 'inputs_embeds'`, or a `KeyError` of the same name.
    Affected are vision, speech and encoder models: InstructBLIP, BLIP, Whisper, Speech2Text, CLIP,
    VisionEncoderDecoder.

    ## Why
    `PeftModelForCausalLM`, `PeftModelForSeq2SeqLM` and the others are written for text models: they
    always pass `input_ids`, `attention_mask`, `inputs_embeds`, `labels` and more, even when these
    are `None`. A forward without such a parameter raises; a forward with `**kwargs` passes the
    `None` on together with its own value.

    ## Versions
    All versions of PEFT. Which models are affected depends on how transformers wrote their forward:
    InstructBLIP and BLIP-2 are fine from transformers 4.57 on, Whisper is not.

    ## Fix
    Leave `task_type` out: the plain `PeftModel` passes on only what it was given; adapters, loss
    and saved weights are the same. A classification head, which the wrapper trains and saves by
    itself, then has to be named in `modules_to_save`. Or, with the `task_type` as it is, a patch
    that drops arguments that are `None`. `Trainer` of older releases does not see the labels behind
    the plain `PeftModel`: give it `label_names=["labels"]`, or it reports no evaluation loss.

    Do not rewrite the model's forward. Chaining its parts by hand (vision model, Q-Former,
    projection, language model) silently trains something else: since transformers 4.46 the image
    features replace the placeholders in the prompt instead of preceding it.

    ## Links
    https://huggingface.co/docs/peft/package_reference/peft_model
    """

    code = "LD102"
    name = "wrapper-passes-unknown-arguments"
    summary = "PEFT's wrapper passes keyword arguments that the model's forward does not take."
    depth = "meta"
    symptoms = (
        Symptom(rf"got an unexpected keyword argument '({_SENT})'"),
        Symptom(rf"got multiple values for (keyword )?argument '({_SENT})'",
                "a forward with **kwargs"),
        Symptom(
            r"(?<!compute_loss\(\) )got an unexpected keyword argument 'num_items_in_batch'",
            "transformers>=4.46",
        ),
        Symptom(r"does not support inputs_embeds\b"),
        Symptom(r"KeyError: 'inputs_embeds'", "transformers 4.57, BLIP"),
    )  # fmt: skip
    told_as = (
        "With LoRA, Whisper or a vision model gets input_ids that its forward does not take.",
    )
    examples = (
        Example(
            "broken",
            "arch:whisper",
            {"task_type": "SEQ_2_SEQ_LM", "target_modules": ["q_proj", "v_proj"]},
            why="speech goes in as input_features, the wrapper sends input_ids",
        ),
        Example(
            "broken",
            "arch:clip",
            {
                "model_class": "AutoModel",
                "task_type": "FEATURE_EXTRACTION",
                "target_modules": ["q_proj", "v_proj"],
            },
            why="CLIP's forward has no inputs_embeds",
        ),
        Example(
            "broken",
            "arch:instructblip",
            {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]},
            requires={"transformers": "<4.57"},
            why="InstructBLIP makes inputs_embeds itself",
        ),
        Example(
            "healthy",
            "arch:instructblip",
            {"task_type": "CAUSAL_LM", "target_modules": r".*language_model.*\.(q_proj|v_proj)"},
            requires={"transformers": ">=4.57"},
            why="fixed in transformers",
        ),
        Example(
            "broken",
            "arch:wav2vec2",
            {
                "model_class": "AutoModelForAudioClassification",
                "task_type": "SEQ_CLS",
                "target_modules": ["q_proj", "v_proj"],
            },
            requires={"transformers": "<5"},
            why="the fix must keep the new classifier trained and saved",
        ),
        Example("healthy", "arch:t5", {"task_type": "SEQ_2_SEQ_LM", "target_modules": ["q", "v"]}),
        Example("healthy", "arch:whisper", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        recipe = case.recipe
        task_type = recipe.get("task_type")
        if task_type is None:
            return
        if recipe.peft_type in PROMPT_METHODS:
            raise EvidenceError(
                "prompt learning makes inputs_embeds itself; this rule is about adapters"
            )
        if not structure.injection.ok:
            raise EvidenceError("PEFT refuses the recipe, so no wrapper calls the model")
        accepted = {parameter.name for parameter in structure.forward_parameters}
        unnamed = [name for name in structure.wrapper_sends if name not in accepted]
        refused = [] if structure.forward_takes_any else unnamed
        if _ran(case):
            return  # a decorator may take what the signature does not show
        seen = _seen_failing(case, structure)
        if refused and all(name in FLAGS for name in refused) and not seen:
            _needs_a_run(case, structure, refused)
            return
        if not refused and not seen:
            if unnamed:
                _needs_a_run(case, structure, [name for name in unnamed if name not in FLAGS])
            return
        with_value = [name for name in refused if name not in structure.wrapper_sends_none]
        without_head = bool(with_value) and not structure.has_head
        if without_head and "labels" in with_value and task_type.endswith("_LM"):
            return  # a class without a head was loaded: that is the cause, LD101 says so
        yield self._finding(case, seen, refused, without_head)

    def _finding(
        self, case: Case, seen: _Seen | None, refused: Sequence[str], without_head: bool
    ) -> Finding:
        structure, recipe = case.structure, case.recipe
        task_type: str = recipe.get("task_type")
        accepted = {parameter.name for parameter in structure.forward_parameters}
        wrapper = structure.injection.wrapper or f"wrapper for {task_type}"
        evidence = [
            Measurement(f"{wrapper} sends", ", ".join(structure.wrapper_sends),
                    "installed PEFT, called with a recording stand-in"),
            Measurement("of these None", ", ".join(structure.wrapper_sends_none) or "none",
                    "installed PEFT, called with a recording stand-in"),
            Measurement(f"{structure.model_class}.forward takes",
                    ", ".join(sorted(accepted)) + (", **kwargs" if structure.forward_takes_any
                                                   else ""),
                    "its signature"),
        ]  # fmt: skip
        if refused:
            evidence.append(Measurement("refused", ", ".join(refused), "both compared"))
            what = f"{', '.join(refused)}, which {structure.model_class}.forward does not accept"
        else:
            assert seen is not None
            none = "=None" if seen.argument in structure.wrapper_sends_none else ""
            what = f"{seen.argument}{none}, which {structure.model_class}.forward {seen.did}"
        if seen:
            evidence.append(Measurement("forward", seen.error, f"{case.settings.depth} model"))
        return self.finding(
            "error",
            f"{wrapper} passes {what}: the first step fails.",
            location=Location("recipe", "task_type"),
            evidence=tuple(evidence),
            proof=Proof("executed", "the forward failed with this message; without adapters it ran")
            if seen
            else Proof("measured", "the signature does not accept these arguments"),
            fixes=_fixes(structure, recipe, task_type, without_head),
            explains=CONSEQUENCES,
        )


def _ran(case: Case) -> bool:
    """Whether the adapted forward was run, through this wrapper, and held."""
    if not case.reaches("tiny") or not case.has("verification"):
        return False
    forward = case.verification.check("forward")
    return forward is not None and forward.status == "passed"


def _seen_failing(case: Case, structure: Structure) -> _Seen | None:
    """The exception of the adapted forward, when it names an argument that the wrapper sends.

    The contract has run the same batch without adapters first, so it is the wrapper's doing.
    """
    if not case.reaches("tiny") or not case.has("verification"):
        return None
    failure = case.verification.failure
    if failure is None or failure.check != "forward":
        return None
    for pattern, did in _ARGUMENT_ERRORS:
        hit = pattern.search(failure.message)
        if hit and hit["name"] in structure.wrapper_sends:
            return _Seen(f"{failure.type}: {failure.message}", hit["name"], did)
    return None


def _needs_a_run(case: Case, structure: Structure, names: Sequence[str]) -> None:
    """Raises EvidenceError when these arguments go into ``**kwargs`` and no forward was run: the
    signature does not tell what becomes of them."""
    if not names:
        return
    if not case.reaches("tiny"):
        raise EvidenceError(
            f"whether {structure.model_class}.forward accepts {', '.join(names)} is only known "
            "by running it (--depth tiny); its signature does not show it"
        )
    forward = case.verification.check("forward")
    if forward is None or forward.status == "skipped":
        raise EvidenceError(
            f"the training contract stopped before the forward: {case.verification.reason}"
        )


def _fixes(
    structure: Structure, recipe: Recipe, task_type: str, without_head: bool
) -> tuple[Fix, ...]:
    head = next((item for item in structure.head_classes if item.task_type == task_type), None)
    if without_head and head and task_type in HAS_A_HEAD_CLASS:
        return (
            Fix(
                f"Load the class for this task: {head.auto_class} ({head.class_name}).",
                "safe",
                (Edit("model_class", head.auto_class),),
            ),
        )
    return (
        _no_task_type(structure, recipe),
        Fix(
            "Patch PEFT to drop arguments that are None (lora_doctor.apply in the training "
            "script).",
            "safe",
            patch=Patch("drop_none_arguments"),
        ),
    )


def _no_task_type(structure: Structure, recipe: Recipe) -> Fix:
    """The plain wrapper, told to keep the heads that the wrapper of the task type keeps unasked:
    a new head that is frozen and not saved would be another training."""
    title = "Leave task_type out: the plain PeftModel passes on only what it is given"
    parts = {part for group in structure.groups for part in group.pattern.split(".")}
    saved = list(recipe.get("modules_to_save") or ())
    kept = [name for name in structure.wrapper_keeps if name in parts and name not in saved]
    if not kept:
        return Fix(f"{title}.", "safe", (Edit("task_type", None),))
    return Fix(
        f"{title}; modules_to_save keeps the head trained and saved, as the wrapper does.",
        "safe",
        (Edit("task_type", None), Edit("modules_to_save", [*saved, *kept])),
    )
