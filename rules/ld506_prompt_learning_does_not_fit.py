"""LD506: prompt or prefix tuning on a model that it does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    Proof,
    Rule,
    Symptom,
    quoted,
)
from lora_doctor.rules._ablation import judged, tried
from lora_doctor.rules._prompt_learning import (
    METHODS,
    as_lora,
    other_methods,
    with_task_type,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import Verification

#: What a message tells about the cause, in words. The message itself stands in the evidence.
_CAUSES = (
    (
        r"Please specify `\w+` in `peft_config`",
        "PEFT looks for sizes of the language model in the outer config, where they are "
        "missing: they are in a sub-config, or the model has none (no attention)",
    ),
    (
        r"does not support past key values",
        "PEFT looks for `past_key_values` among the arguments of forward; in the installed "
        "transformers this class has no argument of that name",
    ),
    (
        r"has no attribute 'vocab_size'",
        "PEFT looks for the vocabulary size in the outer config, which does not have it",
    ),
    (
        r"'NoneType' object is not callable|no attribute 'word_embeddings'",
        "PEFT finds no token embeddings: no weight has as many rows as the vocabulary where it "
        "looks",
    ),
    (
        r"The size of tensor a|shape of the mask|does not match the shape|size mismatch|"
        r"Sizes of tensors must match|shape mismatch",
        "the model computes positions or masks for its own tokens, without the virtual ones",
    ),
    (
        r"'NoneType' object has no attribute 'shape'",
        "the model computes positions from input_ids or attention_mask, and gets neither with "
        "virtual tokens in front",
    ),
    (
        r"unexpected keyword argument 'inputs_embeds'|got multiple values",
        "the model does not take embeddings in place of token ids",
    ),
    (
        r"^KeyError: None",
        "PEFT requires a task_type for prompt learning",
    ),
)
_STRAY = (
    "PEFT freezes the model's modules but not parameters that belong to no module, which are "
    "trained and not saved"
)


#: What a text has in it that is about prompt learning.
_PROMPTS = (
    r"(?i)prefix.?tuning|prompt.?tuning|p.tuning|prompt_?encoder|prompt.?learning|get_prompt|"
    r"virtual_tokens|past_key_values|get_rope_index"
)


#: All activations stored.
_STORED = (Edit("gradient_checkpointing", False),)


class PromptLearningDoesNotFit(Rule):
    """Prompt, prefix or P-tuning fails on a model where LoRA works.

    ## What happens
    `get_peft_model` raises `ValueError: Please specify num_layers in peft_config` or `... has no
    attribute 'vocab_size'`, or the first forward raises `'NoneType' object is not callable`,
    `'NoneType' object has no attribute 'shape'` or an error about sizes that differ by the number
    of virtual tokens. Prefix tuning of a classifier raises `Model does not support past key values
    which are required for prefix tuning`. Or it runs, and weights that belong to no module (the
    query tokens of a Q-Former) are trained too and not saved.

    ## Why
    These methods put virtual tokens in front of the input, so PEFT needs internals of the model:
    the sizes of its language model, its token embeddings, how positions and masks are computed. Its
    assumptions hold for text models. A model with images has these sizes in a sub-config, its
    embeddings in another place, and computes positions itself, for its own tokens only (mRoPE,
    cross attention).

    ## Versions
    PEFT before 0.16 refuses nearly every model whose config has a `text_config`. Later releases
    accept most of them; prefix tuning on models with mRoPE breaks in other ways, release by
    release. transformers 5.24 calls the argument `past_key_values` of most forwards `cache`; PEFT
    up to 0.21 looks for the old name before prefix tuning with SEQ_CLS, TOKEN_CLS or QUESTION_ANS.

    ## Fix
    LoRA on the language model, or the prompt method that runs on this model. Both change what the
    model learns, so they are applied only with `--unsafe-fixes`; each was tested by training the
    tiny model with it. Giving `num_layers`, `token_dim` and `num_attention_heads` by hand only
    leads to the next error.

    ## Links
    https://huggingface.co/docs/peft/conceptual_guides/prompting
    https://github.com/huggingface/peft/issues/2315
    """

    code = "LD506"
    name = "prompt-learning-does-not-fit"
    summary = "Prompt or prefix tuning fails on this model, on which LoRA works."
    depth = "tiny"
    symptoms = (
        Symptom(r"Please specify `?(num_layers|token_dim|num_attention_heads)`? in `?peft_config"),
        Symptom(r"does not support past key values which are required for prefix tuning"),
        Symptom(
            r"Config' object has no attribute 'vocab_size'",
            context=r"(?i)(?:prefix|prompt|\bp).?tuning|prompt_?encoder|get_prompt|virtual_tokens",
        ),
        Symptom(r"'NoneType' object has no attribute 'shape'", context=_PROMPTS),
        Symptom(r"Attention mask should be of size \(\d", context=_PROMPTS),
        Symptom(
            r"The expanded size of the tensor \(\d+\) must match the existing size \(\d+\)",
            context=_PROMPTS,
        ),
        Symptom(r"'NoneType' object is not callable", context=_PROMPTS),
        Symptom(r"KeyError: None", context=_PROMPTS),
        Symptom(
            r"The shape of the mask \[[\d, ]+\] at index \d does not match the shape of the",
            context=_PROMPTS,
        ),
        Symptom(
            r"The size of tensor a \(\d+\) must match the size of tensor b \(\d+\)",
            context=_PROMPTS,
        ),
        Symptom(r"(?i)(?:prefix|prompt|p).?tuning\w* does not work with gradient checkpointing"),
        Symptom(r"Prefix tuning skipped every layer"),
        Symptom(r"Prefix tuning injected into layers .{0,200}? skipped"),
        Symptom(
            r"'tuple' object has no attribute '(?:get_usable_length|get_seq_length|update)'",
            "a cache handed over as tuples",
            context=_PROMPTS,
        ),
        Symptom(r"There should be \d past states\. \d \(past / key\) for cross attention"),
        Symptom(
            r"'\w*DynamicCache' object has no attribute '\w+'",
            context=r"(?i)prefix.?tuning|in get_prompt\b",
        ),
        Symptom(
            r"forward\(\) missing 1 required positional argument: 'input_ids'",
            context=r"(?i)(?:prefix|prompt).?tuning|in get_prompt\b",
        ),
    )
    descriptions = (
        Symptom(
            r"\b(?:prefix|prompt|p).?tuning\b.{0,120}\b(?:fail|error|broke|broken|wrong"
            r"|nonsens|garbage|gibberish|mismatch|crash)"
        ),
        Symptom(
            r"\b(?:fail|error|broke|broken|wrong|nonsens|garbage|gibberish|mismatch"
            r"|crash)\w*\b.{0,80}\b(?:prefix|prompt).?tuning\b"
        ),
        Symptom(
            r"\b(?:shape|dimension\w*|size) (?:error|mismatch)\b.{0,120}\b(?:prefix"
            r"|past_key_values|virtual)"
        ),
        Symptom(r"\bprefix (?:is |gets |was )?(?:added|prepended|inserted) twice"),
    )
    told_as = ("Prefix tuning or prompt tuning fails with a wrong shape in attention.",)
    examples = (
        Example(
            "broken",
            "arch:llava",
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"},
            requires={"peft": "<0.16"},
            why="PEFT reads the sizes off the outer config, which has none",
        ),
        Example(
            "broken",
            "arch:qwen2_vl",
            {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"},
            requires={"transformers": ">=4.57"},
            why="mRoPE makes positions for the tokens that it knows of",
        ),
        Example(
            "broken",
            "arch:llama",
            {
                "peft_type": "PREFIX_TUNING",
                "num_virtual_tokens": 4,
                "task_type": "CAUSAL_LM",
                "gradient_checkpointing": True,
            },
            requires={"transformers": ">=5"},
            why="a checkpointed layer is given no cache",
        ),
        Example(
            "broken",
            "arch:bert",
            {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "task_type": "SEQ_CLS"},
            requires={"transformers": ">=5.24", "peft": "<0.22"},
            why="PEFT looks for an argument of forward that has another name now",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"},
            why="a causal model is given the argument by its old name, which is translated",
        ),
        Example(
            "broken",
            "arch:blip-2",
            {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
            requires={"peft": ">=0.16"},
            why="the query tokens stay trainable and are not saved",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"},
        ),
        Example(
            "healthy",
            "arch:llava",
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"},
            requires={"peft": ">=0.16"},
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        method = case.recipe_in_full().peft_type
        if method not in METHODS:
            return
        seen = judged(case)
        failed = case.unexplained
        if not failed:
            return
        lora = as_lora(case)
        with_lora = tried(case, lora)
        if with_lora is not None and with_lora.outcome != "passed":
            # LoRA may work with another wrapper alone: PEFT's for this task type may not fit.
            other = as_lora(case, same_task=False)
            again = tried(case, other)
            if again is not None and again.outcome == "passed":
                lora, with_lora = other, again
        if with_lora is None:
            raise EvidenceError(
                "LoRA on the same model gave no verdict, so there is nothing to compare with"
            )
        also = {check.name for check in with_lora.failed_checks}
        caused = tuple(name for name in failed if name not in also)
        if not caused:
            raise EvidenceError(
                "LoRA on the same model fails as well, so the method is not the cause"
            )
        fixes = _repairs(case)
        if not fixes:
            fixes = [
                _switch(name, edits) for name, edits in other_methods(case) if _passes(case, edits)
            ]
        if with_lora.outcome == "passed":
            fixes.append(_to_lora(lora))
        yield self._finding(case, method, seen, with_lora, caused, tuple(fixes))

    def _finding(
        self,
        case: Case,
        method: str,
        seen: Verification,
        with_lora: Verification,
        caused: tuple[str, ...],
        fixes: tuple[Fix, ...],
    ) -> Finding:
        source = f"{seen.depth} model, executed"
        check = seen.check(caused[0])
        assert check is not None
        said = check.detail or str(check.value)
        raised = str(check.raised or "")
        if seen.failure and seen.failure.check in caused:
            said = raised = f"{seen.failure.type}: {seen.failure.message}"
        cause = next((words for pattern, words in _CAUSES if re.search(pattern, raised)), "")
        if not cause and "stray" in check.problems:
            cause = _STRAY
        if any(fix.edits == _STORED for fix in fixes):
            cause = "gradient checkpointing disables the cache through which PEFT passes the prefix"
        evidence = [Measurement(f"{method}, check {check.name}", said, source)]
        if seen.failure and seen.failure.where and seen.failure.check in caused:
            evidence.append(Measurement("raised in", seen.failure.where, source))
        evidence.append(
            Measurement(
                "the same model with LoRA",
                with_lora.outcome
                if with_lora.outcome == "passed"
                else f"{', '.join(item.name for item in with_lora.failed_checks)} fail, "
                f"{', '.join(caused)} do not",
                source,
            )
        )
        for fix in fixes:
            evidence.append(Measurement("tried", f"{fix.title} The contract passed.", source))
        return self.finding(
            "error",
            f"{method} fails on {case.structure.model_class}, on which LoRA works"
            + (f": {cause}." if cause else f": {said}"),
            location=Location("recipe", "peft_type"),
            evidence=tuple(evidence),
            proof=Proof("executed", f"the contract was run with {method} and with LoRA"),
            fixes=fixes
            or (
                Fix(
                    (
                        "Use LoRA; none of the prompt methods that need no further settings works "
                        "here."
                    ),
                    "manual",
                ),
            ),
            explains=caused,
        )


def _repairs(case: Case) -> list[Fix]:
    """Edits with which this method works, each run."""
    named = with_task_type(case)
    if _passes(case, named):
        return [Fix("Set task_type.", "safe", named)]
    if case.recipe.get("gradient_checkpointing") and _passes(case, _STORED):
        return [Fix("Train without gradient checkpointing.", "unsafe", _STORED)]
    return []


def _passes(case: Case, edits: tuple[Edit, ...]) -> bool:
    after = tried(case, edits) if edits else None
    return after is not None and after.outcome == "passed"


def _switch(name: str, edits: tuple[Edit, ...]) -> Fix:
    return Fix(f"Use {name} with the same number of virtual tokens.", "unsafe", edits)


def _to_lora(edits: tuple[Edit, ...]) -> Fix:
    targets = next((edit.value for edit in edits if edit.key == "target_modules"), None)
    names = [targets] if isinstance(targets, str) else targets or []
    where = f" on {quoted(names, 4)}" if names else ""
    return Fix(f"Use LoRA{where}.", "unsafe", edits)
