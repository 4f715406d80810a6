"""LD508: a model that modifies its embeddings in place after they were made to require a
gradient."""

from __future__ import annotations

import re
from collections.abc import Iterator

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
    Rule,
    Symptom,
)
from lora_doctor.rules._ablation import judged, with_edits

_LEAF = re.compile(r"leaf Variable that requires grad is being used in an in-place operation")
_PATCH = Patch("embeddings_are_no_leaves")
_OFF = (Edit("gradient_checkpointing", False),)


class EmbeddingsChangedInPlace(Rule):
    """The model writes into the output of its input embeddings in place, and gradient checkpointing
    has made that tensor an autograd leaf.

    ## What happens
    The first forward raises `a leaf Variable that requires grad is being used in an in-place
    operation`, with gradient checkpointing or after `prepare_model_for_kbit_training`. Without
    these the same recipe trains.

    ## Why
    `enable_input_require_grads` calls `requires_grad_` on the output of the embeddings. The
    embeddings are frozen, so this tensor is a leaf, and a leaf may not be modified in place. GIT
    and UDOP add positions with `+=`; remote code (such as InternVL's) writes image features into
    it.

    ## Versions
    transformers 5.20 and later call it whenever gradient checkpointing is enabled; before that,
    PEFT's `prepare_model_for_kbit_training` and trainers call it.

    ## Fix
    The patch `embeddings_are_no_leaves`: the tensor is passed on as a copy. Results are the same.
    Or train without gradient checkpointing, which takes more memory.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model
    """

    code = "LD508"
    name = "embeddings-changed-in-place"
    summary = "The model writes into embeddings that gradient checkpointing made an autograd leaf."
    depth = "tiny"
    symptoms = (Symptom(_LEAF.pattern),)
    examples = (
        Example(
            "broken",
            "arch:git",
            {
                "model_class": "AutoModelForCausalLM",
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": False},
                "target_modules": ["query", "value"],
            },
            requires={"transformers": ">=5.20"},
        ),
        Example(
            "healthy",
            "arch:git",
            {"model_class": "AutoModelForCausalLM", "target_modules": ["query", "value"]},
            requires={"transformers": ">=5.20"},
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
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = judged(case)
        failure = seen.failure
        if failure is None or not _LEAF.search(failure.message):
            return
        patched = judged(case.again(case.recipe_in_full(), (*case.patches, _PATCH)))
        source = f"{case.settings.depth} model, executed"
        evidence = [
            Measurement("forward", f"{failure.type}: {failure.message}", failure.where or source),
            Measurement(
                "the same with the patch embeddings_are_no_leaves", patched.outcome, source
            ),
        ]
        fixes: list[Fix] = []
        if _passed_on(patched.failure):
            fixes.append(
                Fix("Pass the embeddings on as a copy, which may be modified in place.", "safe",
                    patch=_PATCH)
            )  # fmt: skip
        if case.recipe.get("gradient_checkpointing"):
            try:
                without = with_edits(case, _OFF)
            except EvidenceError as error:
                evidence.append(
                    Measurement("the same recipe without checkpointing", str(error), source)
                )
            else:
                said = without.outcome
                evidence.append(Measurement("the same recipe without checkpointing", said, source))
                if _passed_on(without.failure):
                    fixes.append(
                        Fix("Train without gradient checkpointing: takes more memory.", "unsafe",
                            _OFF)
                    )  # fmt: skip
        if not fixes:
            return  # another leaf than the embeddings
        yield self.finding(
            "error",
            f"{seen.model_class} modifies its embeddings in place (in "
            f"{failure.module or 'forward'}), and they are an autograd leaf that requires a "
            "gradient.",
            location=Location("module", failure.module or seen.model_class),
            evidence=tuple(evidence),
            proof=Proof("executed", "the same recipe was run with and without the change"),
            fixes=tuple(fixes),
            explains=(failure.check,),
        )


def _passed_on(failure: object) -> bool:
    """Whether this failure is gone; another one is another rule's."""
    return not _LEAF.search(getattr(failure, "message", "") or "")
