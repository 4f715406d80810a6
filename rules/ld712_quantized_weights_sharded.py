"""LD712: quantized weights are to be sharded over several processes."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)


class QuantizedWeightsSharded(Rule):
    """Quantized weights are to be sharded with FSDP or ZeRO-3.

    ## What happens
    In 8 bits loading or wrapping fails; LLaMA-Factory says `Only 4-bit quantized model can use
    fsdp+qlora or auto device map`. In 4 bits FSDP fails with `Must flatten tensors with uniform
    dtype but got torch.bfloat16 and torch.uint8` if the storage dtype is not that of the model.

    ## Why
    Sharding splits one flat tensor of one dtype. 8-bit weights have statistics that are not split
    with them; 4-bit weights can be stored as bfloat16.

    ## Versions
    FSDP with 4-bit weights needs bitsandbytes 0.43 and transformers 4.39 or later.

    ## Fix
    Use 4 bits with `bnb_4bit_quant_storage` set to the dtype of the model, or no sharding (ZeRO-2,
    DDP).

    ## Links
    https://huggingface.co/docs/bitsandbytes/fsdp_qlora
    """

    code = "LD712"
    name = "quantized-weights-sharded"
    summary = "Quantized weights are to be sharded with FSDP or ZeRO-3."
    depth = "static"
    symptoms = (
        Symptom(r"Must flatten tensors with uniform dtype but got .{0,60}torch\.(?:u?int8|float8)"),
        Symptom(r"Cannot flatten integer dtype tensors", weight=1),
        Symptom(r"Only 4-bit quantized model can use fsdp\+qlora"),
        Symptom(
            r"`FlatParameter` requires uniform dtype but got .{0,60}torch\.(?:u?int8|float8)",
            "PyTorch 2.0",
        ),
    )
    descriptions = (
        Symptom(
            r"\b(?:parameters?|params|weights|model)\b.{0,60}"
            r"\bnot (?:being )?(?:partitioned|sharded)\b"
        ),
        Symptom(
            r"\b(?:zero-?3|fsdp)\b.{0,60}(?:(?<!\d)[48].?bit|\bq-?lora)\b.{0,80}"
            r"\b(?:memory|oom|fails?|crash\w*)\b"
        ),
        Symptom(
            r"(?:(?<!\d)[48].?bit|\bq-?lora)\b.{0,80}\b(?:zero-?3|fsdp)\b.{0,80}"
            r"\b(?:memory|oom|fails?|crash\w*)\b"
        ),
    )
    examples = (
        Example("broken", "tests/set_ups/deepspeed/zero3_8bit.yaml", depth="static"),
        Example("healthy", "tests/set_ups/deepspeed/agrees.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            yield from self._of_run(case)
            return
        files, set_up, recipe = case.side_files, case.set_up, case.recipe
        by = "FSDP" if files.fsdp or _fsdp(set_up.entries) else ""
        by = by or ("ZeRO-3" if files.zero_stage == 3 else "")
        if not by or recipe.quantized is None:
            return
        storage = set_up.entries.get("bnb_4bit_quant_storage")
        sets_it = set_up.format in ("LLaMA-Factory", "axolotl")  # to the dtype of the model
        if recipe.quantized == "4bit" and (by == "ZeRO-3" or sets_it or storage):
            return
        key = f"load_in_{recipe.quantized}"
        yield self.finding(
            "error",
            (
                f"{by} may be unable to shard the 8-bit weights of the model."
                if recipe.quantized == "8bit"
                else f"The 4-bit weights of the model are stored as uint8, which {by} may "
                "refuse next to other dtypes."
            ),
            location=Location("recipe", key),
            evidence=(
                Measurement(key, True, str(recipe.places.get(key, "set-up"))),
                Measurement("sharded by", by,
                            files.deepspeed_file or files.accelerate_file or set_up.format),
            ),
            proof=Proof("inferred", ("the set-up and the files that it refers to were read, not "
                                    "run")),
            fixes=(
                Fix(
                    "Quantize to 4 bits, with bnb_4bit_quant_storage set to the dtype of the "
                    "model, or use ZeRO-2 or DDP, which do not shard weights.",
                    "manual",
                ),
            ),
        )  # fmt: skip

    def _of_run(self, case: Case) -> Iterator[Finding]:
        """8 bits, in a command that was dry-run; what FSDP says of 4 bits is LD545's matter."""
        found = case.dry_run.processes
        if found is None or case.recipe.quantized != "8bit":
            return
        by = found.asked_type if found.asked_type.startswith("FSDP") else ""
        by = by or ("ZeRO-3" if found.zero_stage == 3 else "")
        if not by:
            return
        yield self.finding(
            "error",
            f"{by} may be unable to shard the 8-bit weights of the model.",
            location=Location("recipe", "load_in_8bit"),
            evidence=(
                Measurement("load_in_8bit", True, "arguments of from_pretrained"),
                Measurement("sharded by", by, found.asked_in),
            ),
            proof=Proof(
                "inferred",
                ("what the command asks for; shards of 8-bit weights have no statistics"),
            ),
            fixes=(
                Fix(
                    "Quantize to 4 bits, with bnb_4bit_quant_storage set to the dtype of the "
                    "model, or use ZeRO-2 or DDP, which do not shard weights.",
                    "manual",
                ),
            ),
        )


def _fsdp(entries: object) -> bool:
    """Whether the framework's own file asks for FSDP."""
    found = entries.get("fsdp") or entries.get("fsdp_config") if isinstance(entries, dict) else None
    return bool(found)
