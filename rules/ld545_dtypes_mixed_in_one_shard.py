"""LD545: FSDP 1 would flatten parameters of different dtypes into one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Proof, Rule, Symptom
from lora_doctor.rules._dry_run_script import FSDP_LOOP, MODEL
from lora_doctor.rules._processes import SOURCE, at, failure, raised, together

_DTYPES = re.compile(r"Must flatten tensors with uniform dtype but got (\S+) and (\S+)")
_INTEGERS = re.compile(r"Cannot flatten integer dtype tensors")


class DtypesMixedInOneShard(Rule):
    """FSDP version 1 would flatten parameters of different dtypes into one.

    ## What happens
    `ValueError: Must flatten tensors with uniform dtype but got torch.bfloat16 and torch.float32`
    when the model is prepared, or `Cannot flatten integer dtype tensors`.

    ## Why
    FSDP 1 makes one flat tensor per wrapped module. PEFT keeps adapters in float32 on a bfloat16
    base (`autocast_adapter_dtype`), `prepare_model_for_kbit_training` casts norms to float32, and
    bitsandbytes stores weights as uint8 unless `bnb_4bit_quant_storage` says otherwise.

    ## Versions
    PEFT casts adapters to float32 from 0.12 on. FSDP 2 (`fsdp_version: 2`) flattens nothing.

    ## Fix
    Use one dtype: `get_peft_model(..., autocast_adapter_dtype=False)`, and for quantized weights
    set `bnb_4bit_quant_storage` to the dtype of the model; or use `fsdp_version: 2`. Adapters in
    bfloat16 train differently from adapters in float32, so nothing is applied by default.

    ## Links
    https://huggingface.co/docs/peft/accelerate/fsdp
    """

    code = "LD545"
    name = "dtypes-mixed-in-one-shard"
    summary = "FSDP 1 would flatten parameters of different dtypes into one."
    depth = "static"
    symptoms = (
        Symptom(r"Must flatten tensors with uniform dtype but got"),
        Symptom(r"Cannot flatten integer dtype tensors"),
        Symptom(r"`FlatParameter` requires uniform dtype but got", "PyTorch 2.0"),
    )
    told_as = ("FSDP fails because the parameters have mixed dtypes.",)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL
            + FSDP_LOOP.replace("PREPARED", "model.bfloat16()")
            .replace(
                "rank = int",
                "for name, one in model.named_parameters():\n"
                "    one.data = one.data.to(torch.float32 if 'lora_' in name else torch.bfloat16)\n"
                "rank = int",
            )
            .replace("model.bfloat16()", "model"),
            processes=2,
            why="adapters in float32 over a base in bfloat16",
        ),
        Example("healthy", "", script=MODEL + FSDP_LOOP.replace("PREPARED", "model"), processes=2),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        failed = failure(case)
        if failed is None:
            return
        found, error = failed
        dtypes, integers = _DTYPES.search(error.message), _INTEGERS.search(error.message)
        if not dtypes and not integers:
            return
        quantized = case.recipe.quantized
        kinds = " and ".join(sorted(dtypes.groups())) if dtypes else "whole numbers"
        remedy = (
            "Set bnb_4bit_quant_storage to the dtype of the model (4 bits only; FSDP does not "
            "shard 8-bit weights)"
            if quantized
            else "Keep adapters in the dtype of the base: get_peft_model(..., "
            "autocast_adapter_dtype=False), and cast what the script has cast to float32"
        )
        yield self.finding(
            "error",
            f"FSDP 1 would flatten parameters of different dtypes into one: {kinds}.",
            location=at(case.dry_run, error.file, error.line),
            evidence=(
                raised(error),
                together(found),
                Measurement("dtypes", kinds, "the exception"),
                Measurement("quantized", quantized or "no", "recipe"),
            ),
            proof=Proof("executed", SOURCE),
            fixes=(Fix(f"{remedy}; or shard with FSDP 2 (fsdp_version: 2).", "manual"),),
        )
