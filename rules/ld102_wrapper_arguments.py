"""LD102: PEFT's wrapper passes keyword arguments that this forward does not take."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.case import Case
from lora_doctor.evidence.structure import Structure
from lora_doctor.rule import (
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measure,
    Patch,
    Proof,
    Rule,
    Symptom,
)

#: The wrapper makes a new head trainable and saves it: without it, that part must be asked for.
KEEPS_A_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
CONSEQUENCES = (
    "forward", "starts-at-base", "loss-finite", "gradients", "steps", "adapters-move",
    "loss-falls", "save-reload", "merge",
)  # fmt: skip
_ARGUMENT_ERRORS = (
    re.compile(r"unexpected keyword argument '(?P<name>\w+)'"),
    re.compile(r"multiple values for (?:keyword )?argument '(?P<name>\w+)'"),
    re.compile(r"^'(?P<name>\w+)'$"),  # a KeyError in a recorder of outputs
)


class WrapperArguments(Rule):
    """The PEFT wrapper of this `task_type` calls the model with keyword arguments that its
    `forward` does not take, or that the model passes on a second time itself.

    ## What happens
    The first forward raises `TypeError: ... got an unexpected keyword argument 'inputs_embeds'`,
    or `got multiple values for keyword argument 'inputs_embeds'`, or a `KeyError` of the same
    name. Vision, speech and encoder models are hit: InstructBLIP, BLIP, Whisper, Speech2Text,
    CLIP, VisionEncoderDecoder.

    ## Why
    `PeftModelForCausalLM`, `PeftModelForSeq2SeqLM` and the others are written for text: they
    always pass `input_ids`, `attention_mask`, `inputs_embeds`, `labels` and more, also when these
    are `None`. A forward without the name refuses it; a forward with `**kwargs` hands the `None`
    on next to its own value.

    ## Versions
    All of PEFT. Which model is hit depends on how transformers wrote its forward: InstructBLIP
    and BLIP-2 are fine from transformers 4.57 on, Whisper is not.

    ## Fix
    No `task_type`: the plain `PeftModel` passes on what it was given and nothing else; adapters,
    loss and saved weights are the same. Where the wrapper is needed (it keeps a new
    classification head), a patch that drops arguments that are `None`. Rewriting the model's
    forward is not needed, and a hand-made chain of its parts changes what is trained.

    ## Links
    https://huggingface.co/docs/peft/package_reference/peft_model
    """

    code = "LD102"
    name = "wrapper-passes-unknown-arguments"
    summary = "PEFT's wrapper passes keyword arguments that the model's forward does not take."
    depth = "meta"
    symptoms = (
        Symptom(r"got an unexpected keyword argument '(inputs_embeds|input_ids)'"),
        Symptom(r"got an unexpected keyword argument "
                r"'(labels|decoder_input_ids|decoder_inputs_embeds|start_positions|"
                r"decoder_attention_mask|task_ids|token_type_ids|output_attentions)'"),
        Symptom(r"got multiple values for (keyword )?argument '(inputs_embeds|input_ids)'"),
        Symptom(r"KeyError: 'inputs_embeds'", "transformers 4.57, BLIP"),
    )  # fmt: skip
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
        Example("healthy", "arch:t5", {"task_type": "SEQ_2_SEQ_LM", "target_modules": ["q", "v"]}),
        Example("healthy", "arch:whisper", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        task_type = case.recipe.get("task_type")
        if task_type is None or not structure.injection.ok:
            return
        accepted = {parameter.name for parameter in structure.forward_parameters}
        refused = [
            name
            for name in structure.wrapper_sends
            if name not in accepted and not structure.forward_takes_any
        ]
        seen = _seen_failing(case, structure)
        if not refused and not seen:
            return
        with_value = [name for name in refused if name not in structure.wrapper_sends_none]
        if "labels" in with_value and not structure.has_head and task_type.endswith("_LM"):
            return  # a class without a head was loaded: that is the cause, LD101 says so
        wrapper = structure.injection.wrapper or f"wrapper for {task_type}"
        evidence = [
            Measure(f"{wrapper} sends", ", ".join(structure.wrapper_sends),
                    "installed PEFT, called on a recorder"),
            Measure("of these None", ", ".join(structure.wrapper_sends_none) or "none",
                    "installed PEFT, called on a recorder"),
            Measure(f"{structure.model_class}.forward takes",
                    ", ".join(sorted(accepted)) + (", **kwargs" if structure.forward_takes_any
                                                   else ""),
                    "its signature"),
        ]  # fmt: skip
        if refused:
            evidence.append(Measure("refused", ", ".join(refused), "comparison of the two"))
        if seen:
            evidence.append(Measure("forward", seen, f"{case.settings.depth} model"))
        yield self.finding(
            "error",
            f"{wrapper} passes {', '.join(refused) or 'arguments'} that "
            f"{structure.model_class}.forward "
            f"{'does not take' if refused else 'passes on a second time'}: "
            "the first step fails.",
            location=Location("recipe", "task_type"),
            evidence=tuple(evidence),
            proof=Proof("executed", "the forward failed with this message; without adapters it ran")
            if seen
            else Proof("measured", "the signature has no place for these arguments"),
            fixes=_fixes(structure, task_type, with_value),
            explains=CONSEQUENCES,
        )


def _seen_failing(case: Case, structure: Structure) -> str:
    """The exception of the adapted forward, when it names an argument that the wrapper sends.

    The contract has run the same batch without adapters first, so it is the wrapper's doing.
    """
    if not case.reaches("tiny") or not case.has("verification"):
        return ""
    failure = case.verification.failure
    if failure is None or failure.check != "forward":
        return ""
    for pattern in _ARGUMENT_ERRORS:
        hit = pattern.search(failure.message)
        if hit and hit["name"] in structure.wrapper_sends:
            return f"{failure.type}: {failure.message}"
    return ""


def _fixes(structure: Structure, task_type: str, with_value: list[str]) -> tuple[Fix, ...]:
    plain = Fix(
        "Leave task_type out: the plain PeftModel passes on only what it is given.",
        "safe",
        (Edit("task_type", None),),
    )
    drop = Fix(
        "Patch PEFT to drop arguments that are None (lora_doctor.apply in the training script).",
        "safe",
        patch=Patch("drop_none_arguments"),
    )
    if task_type not in KEEPS_A_HEAD:
        return (plain, drop)
    if not with_value:
        return (drop,)
    head = next((item for item in structure.head_classes if item.task_type == task_type), None)
    if head and head.class_name != structure.model_class:
        return (
            Fix(
                f"Load the class for it: {head.auto_class} ({head.class_name}).",
                "safe",
                (Edit("model_class", head.auto_class),),
            ),
        )
    return (plain,)
