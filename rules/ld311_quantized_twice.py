"""LD311: the recipe asks for a quantization on top of the one that the checkpoint comes in."""

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
    quoted,
)
from lora_doctor.rules import _checkpoint

if TYPE_CHECKING:
    from lora_doctor.rule_api import CheckpointQuantization

_KEYS = (
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype",
    "bnb_4bit_use_double_quant", "llm_int8_skip_modules",
)  # fmt: skip


class QuantizedTwice(Rule):
    """The recipe sets `load_in_4bit` or `load_in_8bit`, and the checkpoint is quantized already.

    ## What happens
    By another method: `from_pretrained` raises `The model is quantized with GPTQConfig but you are
    passing a BitsAndBytesConfig config`. By bitsandbytes too: transformers warns that the
    checkpoint's `quantization_config` will be used, and what the recipe says otherwise (8 bits, a
    compute dtype, a skip list) has no effect.

    ## Why
    Stored weights are packed numbers; they cannot be quantized again without being turned into
    floating point first, which loading does not do.

    ## Versions
    All. Releases before 5.5 of transformers take some other pairs without a word.

    ## Fix
    Take the recipe's own quantization out, or train the checkpoint that this one was made from.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/quantization
    """

    code = "LD311"
    name = "quantized-twice"
    summary = "The recipe asks for a quantization on top of the checkpoint's."
    depth = "meta"
    symptoms = (
        Symptom(r"The model is quantized with \w+ but you are passing a \w+ config"),
        Symptom(r"The model is already quantized with .{1,80}can't quantize it again"),
        Symptom(r"already has a `quantization_config` attribute\. The `quantization_config`"),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/fp8",
            {"target_modules": ["q_proj", "v_proj"], "load_in_4bit": True},
            {"transformers": ">=5.23"},
            why="transformers refuses the pair",
        ),
        Example(
            "broken",
            "tests/folders/bitsandbytes_4bit",
            {"target_modules": ["q_proj", "v_proj"], "load_in_8bit": True},
            {"transformers": ">=4.53"},
            why="loaded in 4 bits whatever the recipe says",
        ),
        Example(
            "healthy",
            "tests/folders/bitsandbytes_4bit",
            {"target_modules": ["q_proj", "v_proj"], "load_in_4bit": True},
            {"transformers": ">=4.53"},
            why="both say the same",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"], "load_in_4bit": True}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = _checkpoint.of(case)
        if found is None:
            return
        if found.request_error is not None:
            yield self._refused(case, found)
            return
        lost = _without_effect(case) if found.request_ignored else {}
        if lost:
            yield self._ignored(case, found, lost)

    def _refused(self, case: Case, found: CheckpointQuantization) -> Finding:
        error = found.request_error
        assert error is not None
        kind = case.asked.quantized
        return self.finding(
            "error",
            f"load_in_{kind} on a checkpoint that is quantized with {found.method}: transformers "
            "refuses to load it.",
            location=Location("recipe", f"load_in_{kind}"),
            evidence=(
                _checkpoint.method(found),
                Measurement("from_pretrained", f"{error.type}: {error.message[:300]}", error.where),
            ),
            proof=Proof("executed", "transformers' own merge of both configs raised this"),
            fixes=(_out(case), Fix("Or train the checkpoint that it was made from, in "
                                   f"{kind}.", "manual")),
            explains=("builds",),
        )  # fmt: skip

    def _ignored(
        self, case: Case, found: CheckpointQuantization, lost: dict[str, tuple[Any, Any]]
    ) -> Finding:
        return self.finding(
            "warning",
            f"The checkpoint is quantized already; the recipe's {quoted(lost, 6)} has no effect.",
            location=Location("recipe", next(iter(lost))),
            evidence=(
                *(
                    Measurement(key, f"{wanted} in the recipe, {has} in the checkpoint",
                                "config.json")
                    for key, (wanted, has) in lost.items()
                ),
                Measurement("transformers", found.request_ignored[:300], "its merge of both"),
            ),
            proof=Proof("executed", "transformers merged both configs and kept the checkpoint's"),
            fixes=(_out(case),),
        )  # fmt: skip


def _without_effect(case: Case) -> dict[str, tuple[Any, Any]]:
    """Keys that the recipe sets otherwise than the checkpoint: ``(wanted, what is in force)``."""
    return {
        key: (case.asked.get(key), case.recipe.get(key))
        for key in _KEYS
        if key in case.asked
        and case.asked.origins.get(key) != "checkpoint"
        and case.asked.get(key) != case.recipe.get(key)
        and not (case.asked.get(key) is False and case.recipe.get(key) is None)
    }


def _out(case: Case) -> Fix:
    keys = [key for key in _KEYS if key in case.asked]
    return Fix(
        f"Take {quoted(keys, 6)} out of the recipe: the checkpoint says how it is quantized.",
        "safe",
        tuple(Edit(key, REMOVE) for key in keys),
    )
