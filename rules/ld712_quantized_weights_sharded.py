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
    Sharded,
    Symptom,
    framework_named,
    sharded,
    storage_dtype,
)

_UNSHARDED = "or use ZeRO-2 or DDP, which do not shard weights."


class QuantizedWeightsSharded(Rule):
    """Quantized weights are to be sharded with FSDP or ZeRO-3.

    ## What happens
    In 8 bits loading or wrapping fails; LLaMA-Factory says `Only 4-bit quantized model can use
    fsdp+qlora or auto device map`. In 4 bits FSDP fails with `Must flatten tensors with uniform
    dtype but got torch.bfloat16 and torch.uint8`, or `Cannot flatten integer dtype tensors`, if the
    storage dtype is not that of the model. With ZeRO-3 loading runs out of memory.

    ## Why
    Sharding splits one flat tensor of one dtype. 8-bit weights have statistics that are not split
    with them; 4-bit weights can be stored as bfloat16. transformers does not partition a quantized
    model while it is loaded under ZeRO-3: each process holds all of it first.

    A script is read together with the shell files that start it, its comments, and accelerate's
    config. It is an error where every command of a file, or an argument of the Trainer, asks for
    FSDP 1.

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
    summary = "Quantized weights would be sharded with FSDP or ZeRO-3."
    depth = "static"
    symptoms = (
        Symptom(r"Must flatten tensors with uniform dtype but got .{0,60}torch\.(?:u?int8|float8)"),
        Symptom(r"Cannot flatten integer dtype tensors", weight=1),
        Symptom(
            r"expected there to be only one unique element in .{1,200}?all_gather",
            "DeepSpeed",
            context=r"(?i)load_in_8bit|\b8.?bit\b|\bint8\b",
        ),
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
        Symptom(
            r"\A(?=.*\b(?:load_in_[48]bit|[48].?bit|qlora|quantized)\b)(?=.*\b(?:zero.?3|stage"
            r".?3|fsdp)\b)(?=.*\b(?:fail\w*|memory|error|(?:not|n't) work\w*)\b).+"
        ),
    )
    told_as = ("QLoRA with ZeRO-3 or FSDP does not work: quantized weights cannot be flattened.",)
    examples = (
        Example("broken", "tests/set_ups/deepspeed/zero3_8bit.yaml", depth="static"),
        Example(
            "broken",
            "tests/launched/qlora/train.py",
            depth="static",
            why="FSDP in accelerate's config, and 4-bit weights stored as uint8",
        ),
        Example("healthy", "tests/set_ups/deepspeed/agrees.yaml", depth="meta"),
        Example("healthy", "tests/launched/qlora_stored_as_bfloat16/train.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            yield from self._of_run(case)
            return
        if case.has("program"):
            found = sharded(case.program, case.launches)
            if found is not None:
                yield from self._of_script(case, found)
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
        if by == "FSDP" and framework_named(set_up.format).shards_eight_bits(set_up.entries):
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

    def _of_script(self, case: Case, found: Sharded) -> Iterator[Finding]:
        """What a script that was only read says, with what starts it."""
        recipe = case.recipe
        bits = recipe.quantized
        if bits is None or (bits == "4bit" and found.version == 2):
            return  # FSDP 2 leaves weights out that it cannot shard
        storage, dtype = storage_dtype(case.program), recipe.get("dtype")
        if bits == "8bit":
            what = "8-bit weights of the model may be impossible to shard"
        elif storage is None:
            return
        elif storage == "uint8" and found.by == "FSDP":
            what = "4-bit weights of the model are stored as uint8, which FSDP 1 cannot shard"
        elif found.by == "FSDP" and dtype not in (None, "auto", storage):
            what = f"4-bit weights are stored as {storage} beside weights in {dtype}"
        elif storage == "uint8":
            what = "4-bit weights of the model are not partitioned while they are loaded"
        else:
            return
        key = f"load_in_{bits}"
        sure = found.certain and found.by == "FSDP" and bits == "4bit"
        yield self.finding(
            "error" if sure else "warning",
            f"The {what} ({found.by}).",
            location=Location("recipe", key),
            evidence=(
                Measurement(key, True, str(recipe.places.get(key, "script"))),
                *((Measurement("bnb_4bit_quant_storage", str(storage), "script"),)
                  if bits == "4bit" else ()),
                Measurement("sharded by", found.code, str(found.place)),
            ),
            proof=Proof("inferred", "the script and the command that starts it"),
            fixes=(
                Fix(
                    "Set bnb_4bit_quant_storage to the dtype of the model (4 bits only), "
                    f"{_UNSHARDED}",
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
