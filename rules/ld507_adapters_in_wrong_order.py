"""LD507: a training script puts adapters on after the optimizer was made, or twice."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    TrainingScript,
    adapted_twice,
    optimizer_too_early,
)
from lora_doctor.rules._program import slips

_EARLY = (
    "The optimizer is made by {code} before the adapters are put on in {other}: it holds no "
    "adapter, and what it holds is frozen."
)
_TWICE = (
    "{code} is called on a model that carries adapters since {other}: the first ones are frozen, "
    "replaced or not saved."
)
_AFTER = "Make the optimizer after get_peft_model."
_ONE = (
    "Keep one of the two, add_adapter(name, config) for a second one of the same method, or "
    "merge_and_unload() in between."
)


class AdaptersInWrongOrder(Rule):
    """In the training script `get_peft_model` comes after the optimizer was made of the same model,
    or comes twice.

    ## What happens
    Nothing is raised. The optimizer holds the base weights, which `get_peft_model` has frozen, and
    none of the adapters: no step changes anything. Called twice, the second call freezes or renames
    what the first one put in, and it is not loaded again.

    ## Why
    `get_peft_model` replaces layers inside the model that it is given. What was made of the model
    before does not know them, and a second call finds a model that is no plain one any more.

    ## Versions
    All versions of PEFT.

    ## Fix
    Model, then adapters once, then the optimizer of `[p for p in model.parameters() if
    p.requires_grad]`. The line of the optimizer is moved where both stand in one block and nothing
    between them needs it. Where it cannot be followed which model is meant, only statements of the
    same block are compared; a loaded model is judged by what is in it (LD503, LD505).

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD507"
    name = "adapters-in-wrong-order"
    summary = "A training script puts adapters on after the optimizer was made, or twice."
    depth = "static"
    examples = (
        Example(
            "broken",
            "tests/scripts/adapters_too_late.py",
            depth="static",
            why="the optimizer is made first; and get_peft_model is called twice",
        ),
        Example("broken", "tests/scripts/optimizer_too_early.py", depth="static"),
        Example("healthy", "tests/scripts/adapters_first.py", depth="static"),
        Example("healthy", "tests/scripts/optimizer_last.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        followed = case.program if case.has("program") else None
        early = list(optimizer_too_early(followed)) if followed is not None else []
        twice = list(adapted_twice(followed)) if followed is not None else []
        yield from slips(self, case, early, _EARLY, "adapters are put on", _AFTER)
        yield from slips(self, case, twice, _TWICE, "adapters are put on first", _ONE)
        if followed is not None and not case.has("script"):  # a notebook
            return
        yield from self._by_blocks(case.script, {slip.place.line for slip in (*early, *twice)})

    def _by_blocks(
        self, script: TrainingScript, known: Collection[int | None]
    ) -> Iterator[Finding]:
        """Of models that nobody knows where they come from: statements of one block."""
        path = str(script.path)
        proof = Proof("inferred", "read in the source, which was not run")
        for early in script.order.early_optimizers:
            if early.line in known:
                continue
            source = f"{script.path.name}, line {early.line}"
            yield self.finding(
                "error",
                f"The optimizer is made of {early.model}.parameters() before get_peft_model in "
                f"line {early.wrapped_line}: it holds no adapter, and what it holds is frozen.",
                location=Location("file", path, early.line),
                evidence=(
                    Measurement("the line", early.code, source),
                    Measurement(
                        "adapters are put on in line", early.wrapped_line, script.path.name
                    ),
                ),
                proof=proof,
                fixes=(Fix(_AFTER, "manual"),),
            )
        for twice in script.order.wrapped_twice:
            if twice.line in known:
                continue
            source = f"{script.path.name}, line {twice.line}"
            yield self.finding(
                "error",
                f"get_peft_model is called on {twice.model}, which carries adapters since line "
                f"{twice.first_line}: the first ones are frozen, replaced or not saved.",
                location=Location("file", path, twice.line),
                evidence=(
                    Measurement("the line", twice.code, source),
                    Measurement("called before in line", twice.first_line, script.path.name),
                ),
                proof=proof,
                fixes=(Fix(_ONE, "manual"),),
            )
