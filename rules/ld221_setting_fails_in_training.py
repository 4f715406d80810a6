"""LD221: PEFT takes a setting of the adapter, and training fails or learns nothing with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_doctor.rule_api import (
    REMOVE,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    excerpt,
)
from lora_doctor.rules._ablation import failed_in_training, holds, said, tried

if TYPE_CHECKING:
    from lora_doctor.rule_api import Verification

#: By which method the model is adapted is what another rule is about.
_NOT_TRIED = frozenset({"peft_type", "task_type", "target_modules"})
#: LoRA's targets are what other rules are about. Of other methods they may be no layers that LoRA
#: would have: Shadow wraps whole blocks.
_OTHER_TARGETS = "target_modules"
#: How many settings are tried.
_MOST = 6
#: What happens, by the first check that failed; any other ends the training.
_OUTCOMES = {
    "gradients": "The adapters get no gradient",
    "adapters-move": "The adapters do not move",
    "loss-falls": "The loss does not fall",
    "save-reload": "The saved adapter is another one when it is loaded",
}


class SettingFailsInTraining(Rule):
    """PEFT builds the model with this setting of the adapter, and the first forward raises, or no
    gradient arrives. Without the setting the same recipe trains.

    ## What happens
    `get_peft_model` raises nothing. Then the first forward raises something that does not name the
    setting: `selected index k out of range` (VB-LoRA with a `topk` above `num_vectors`),
    `KeyError: 'default'` (SHiRA with a `mask_type` for which no mask function was given),
    `shape '[2, 64, 4]' is invalid for input of size 504` (Poly with an `n_splits` that does not
    divide the rank and the width), `'ShadowCarrier' object has no attribute 'view'` (Shadow with
    the names of linear layers: it wraps whole blocks), `index_copy_(): Expected a long tensor`
    (`trainable_token_indices: []`). Or nothing is raised, and every gradient is zero: FourierFT
    with `scaling: 0`, VeRA with `d_initial: 0`, LoRA with `lora_alpha: 0` or `lora_dropout: 1.0`.

    ## Why
    PEFT looks at some settings when the config is made, and uses others only in the forward of the
    adapter's layers. A factor of zero there multiplies all that the adapter's weights contribute.

    ## Versions
    Depends on the installed PEFT. The recipe was run with the setting and without it.

    ## Fix
    The setting is removed, and PEFT uses its default. That changes what is trained, so it is
    applied only with `--unsafe-fixes`.

    ## Links
    https://huggingface.co/docs/peft/package_reference/peft_types
    """

    code = "LD221"
    name = "setting-fails-in-training"
    summary = "Training fails or learns nothing with one setting of the adapter."
    depth = "tiny"
    about_training = True
    is_comparison = True
    symptoms = (
        Symptom(r"selected index k out of range", raised_in=r"peft[\\/]tuners[\\/]vblora"),
        Symptom(r"KeyError: '\w+'", raised_in=r"peft[\\/]tuners[\\/]shira"),
        Symptom(
            r"'ShadowCarrier' object has no attribute|'ShadowLayer' object is not subscriptable"
        ),
        Symptom(r"unsupported operand type\(s\) for .: 'Tensor' and 'ShadowCarrier'"),
        Symptom(
            r"shape '\[[\d, -]+\]' is invalid for input of size",
            raised_in=r"peft[\\/]tuners[\\/]poly",
        ),
        Symptom(
            r"index_copy_\(\): (?:Expected a long tensor|index -\d+ is out of bounds)",
            raised_in=r"peft[\\/]tuners[\\/]trainable_tokens",
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {
                "peft_type": "VBLORA", "target_modules": ["q_proj"], "num_vectors": 4,
                "vector_length": 8, "topk": 5, "task_type": "CAUSAL_LM",
            },
            {"peft": ">=0.13"},
            why="five of four vectors are taken",
        ),
        Example(
            "broken",
            "arch:llama",
            {
                "peft_type": "VERA", "target_modules": ["q_proj"], "r": 8, "d_initial": 0.0,
                "task_type": "CAUSAL_LM",
            },
            {"peft": ">=0.12"},
            why="both of its vectors are zero, and each is multiplied by the other",
        ),
        Example(
            "broken",
            "arch:llama",
            {"peft_type": "SHADOW", "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"},
            {"peft": ">=0.21"},
            why="it wraps whole blocks, all of them where none is named",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj"], "lora_alpha": 0, "task_type": "CAUSAL_LM"},
            why="LoRA's scaling is zero",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj"], "lora_dropout": 0.9, "task_type": "CAUSAL_LM"},
        ),
        Example(
            "healthy",
            "arch:llama",
            {
                "peft_type": "VBLORA", "target_modules": ["q_proj"], "num_vectors": 4,
                "vector_length": 8, "topk": 4, "task_type": "CAUSAL_LM",
            },
            {"peft": ">=0.13"},
        ),
        Example(
            "healthy",
            "arch:llama",
            {
                "peft_type": "VERA", "target_modules": ["q_proj"], "r": 8, "d_initial": 0.01,
                "task_type": "CAUSAL_LM",
            },
            {"peft": ">=0.12"},
        ),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        failed = failed_in_training(case)
        if not failed:
            return
        seen = case.verification
        edits = _edits(case, seen)
        better = next((edit for edit in edits if holds(tried(case, (edit,)), failed)), None)
        if better is not None:
            yield self._finding(case, seen, failed, better)

    def _finding(
        self, case: Case, seen: Verification, failed: tuple[str, ...], better: Edit
    ) -> Finding:
        key, method = better.key, case.recipe.peft_type
        set_to = f"{key}: {_short(case.recipe.get(key))}"
        what = excerpt(said(seen, failed[0]))
        source = f"{seen.depth} model, executed"
        return self.finding(
            # A loss that has not fallen in a few rounds may fall later.
            "warning" if failed == ("loss-falls",) else "error",
            f"{_OUTCOMES.get(failed[0], 'Training fails')} with {set_to} in this {method} adapter, "
            f"but not without it: {what}",
            location=Location("recipe", key),
            evidence=(
                Measurement(f"with {set_to}", what, source),
                Measurement(f"without {key}", f"checks passed: {', '.join(failed)}", source),
            ),
            proof=Proof("executed", f"the contract was run with {key} and without it"),
            fixes=(Fix(f"Remove {key}: PEFT then uses its default.", "unsafe", (better,)),),
            explains=failed,
        )


def _edits(case: Case, seen: Verification) -> list[Edit]:
    """Each takes out one setting, those first that the traceback names."""
    told = seen.failure.traceback + seen.failure.message if seen.failure is not None else ""
    own = [key for key in case.recipe.adapter_values() if key not in _NOT_TRIED]
    own.sort(key=lambda key: key not in told)
    last = [_OTHER_TARGETS] if case.recipe.peft_type != "LORA" else []
    return [Edit(key, REMOVE) for key in (*own[:_MOST], *last) if key in case.recipe]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
