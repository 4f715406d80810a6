"""LD570: the model is compiled before it gets its adapters, which are saved under other names."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, compiled_before_adapters
from lora_doctor.rules._program import slips


class CompiledBeforeAdapters(Rule):
    """`torch.compile(model)` comes before `get_peft_model`.

    ## What happens
    Training runs. The adapter is saved with `_orig_mod.` in its names. Loaded onto the base model,
    PEFT warns of missing keys and none of its weights are loaded: the model answers like the base
    model.

    ## Why
    `torch.compile` returns a module that holds the model as `_orig_mod`. PEFT takes the names of
    the layers from it.

    ## Versions
    All versions of PEFT with torch 2.

    ## Fix
    By hand: compile after `get_peft_model`, or use `torch_compile=True` of `TrainingArguments`. An
    adapter that was saved so is repaired by `lora-doctor fix BASE --adapter FOLDER` (LD620).

    ## Links
    https://huggingface.co/docs/peft/developer_guides/torch_compile
    """

    code = "LD570"
    name = "compiled-before-adapters"
    summary = "The model is compiled before its adapters are added, and they get other names."
    depth = "static"
    symptoms = (Symptom(r"missing adapter keys.{0,120}_orig_mod"),)
    descriptions = (Symptom(r"\b_orig_mod\b"),)
    examples = (
        Example(
            "broken",
            "tests/scripts/compiled_first.py",
            depth="static",
            why="every saved name has _orig_mod in it",
        ),
        Example("healthy", "tests/scripts/compiled_last.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        yield from slips(
            self,
            case,
            compiled_before_adapters(case.program),
            "{code} comes before the adapters of {other}: they are saved with _orig_mod in their "
            "names, and loading them onto the base model finds none of them.",
            "adapters added",
            "Compile the model after get_peft_model, or set torch_compile=True in "
            "TrainingArguments.",
        )
