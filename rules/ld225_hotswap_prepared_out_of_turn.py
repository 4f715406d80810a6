"""LD225: a model is prepared for swapping adapters before it has one, or after it was compiled."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Rule,
    Symptom,
    hotswap_prepared_too_early,
    hotswap_prepared_too_late,
)
from lora_doctor.rules._program import slips


class HotswapPreparedOutOfTurn(Rule):
    """`prepare_model_for_compiled_hotswap` is called on a model that has no adapter yet, or on one
    that is compiled already.

    ## What happens
    It raises `No adapter layers found on the model`, or `Call prepare_model_for_compiled_hotswap
    *before* compiling the model`.

    ## Why
    It makes the adapters that are there as wide as the widest that will be swapped in, and their
    scaling a tensor, so that compiled code holds for all of them.

    ## Versions
    PEFT 0.15 and later, which has the function.

    ## Fix
    By hand: load the first adapter, prepare, compile, in this order.

    ## Links
    https://huggingface.co/docs/peft/package_reference/hotswap,
    https://github.com/huggingface/peft/pull/2177
    """

    code = "LD225"
    name = "hotswap-prepared-out-of-turn"
    summary = "A model is prepared for swapping before it has an adapter, or when it is compiled."
    depth = "static"
    symptoms = (
        Symptom(r"Call prepare_model_for_compiled_hotswap \*?before\*? compiling the model"),
        Symptom(r"No adapter layers found on the model, make sure call"),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/hotswap_prepared_late.py",
            depth="static",
            why="the model is compiled",
        ),
        Example(
            "broken",
            "tests/scripts/hotswap_prepared_early.py",
            depth="static",
            why="there is nothing to prepare",
        ),
        Example("healthy", "tests/scripts/hotswap_prepared.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        order = "Load the first adapter, then prepare, then compile."
        yield from slips(
            self,
            case,
            hotswap_prepared_too_late(case.program),
            "{code} will fail: the model was compiled before, in {other}.",
            "compiled",
            order,
        )
        yield from slips(
            self,
            case,
            hotswap_prepared_too_early(case.program),
            "{code} will fail: the model that was loaded in {other} has no adapter yet.",
            "model loaded",
            order,
        )
