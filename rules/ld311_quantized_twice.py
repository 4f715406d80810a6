"""LD311: the recipe asks for quantization of a checkpoint that is already quantized."""

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
from lora_doctor.rules._quantized import in_bits

if TYPE_CHECKING:
    from lora_doctor.rule_api import CheckpointQuantization

_KEYS = (
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype",
    "bnb_4bit_use_double_quant", "llm_int8_skip_modules",
)  # fmt: skip


class QuantizedTwice(Rule):
    """The recipe sets `load_in_4bit` or `load_in_8bit`, and the checkpoint is already quantized.

    ## What happens
    With another method: `from_pretrained` raises `The model is quantized with GPTQConfig but you
    are passing a BitsAndBytesConfig config`. Also with bitsandbytes: transformers warns that the
    checkpoint's `quantization_config` will be used, and different settings in the recipe (8 bits, a
    compute dtype, a skip list) have no effect.

    ## Why
    The stored weights are packed; they would have to be converted to floating point before they
    could be quantized again, and loading does not do that.

    ## Versions
    All. transformers before 5.5 silently accepts some other pairs.

    ## Fix
    Remove quantization from the recipe, or train the unquantized checkpoint from which this one was
    made.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/quantization
    """

    code = "LD311"
    name = "quantized-twice"
    summary = "The recipe asks for quantization of a checkpoint that is already quantized."
    depth = "meta"
    symptoms = (
        Symptom(r"The model is quantized with \w+ but you are passing a \w+ config"),
        Symptom(r"The model is already quantized with .{1,80}can't quantize it again"),
        Symptom(r"already has a `quantization_config` attribute\. The `quantization_config`"),
    )
    told_as = ("The checkpoint is already quantized, and another quantization config is passed.",)
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
            fixes=(
                _out(case),
                Fix(f"Or train the unquantized checkpoint, loaded in {in_bits(kind)}.", "manual"),
            ),
            explains=("builds",),
        )  # fmt: skip

    def _ignored(
        self, case: Case, found: CheckpointQuantization, lost: dict[str, tuple[Any, Any]]
    ) -> Finding:
        return self.finding(
            "warning",
            f"The checkpoint is already quantized; {quoted(lost, 6)} in the recipe has no effect.",
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
        f"Remove {quoted(keys, 6)} from the recipe: the checkpoint defines its quantization.",
        "safe",
        tuple(Edit(key, REMOVE) for key in keys),
    )
