"""LD507: a training script adds adapters after the optimizer was created, or twice."""

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
    Symptom,
    TrainingScript,
    adapted_twice,
    optimizer_too_early,
)
from lora_doctor.rules._program import slips

_EARLY = (
    "{code} creates the optimizer before {other} adds the adapters: it holds only frozen "
    "weights and no adapter."
)
_TWICE = (
    "{code} is called on a model that already has adapters from {other}: the first ones are "
    "frozen, replaced or not saved."
)
_AFTER = "Create the optimizer after get_peft_model."
_ONE = (
    "Keep one of the two, add_adapter(name, config) for a second one of the same method, or "
    "merge_and_unload() in between."
)


class AdaptersInWrongOrder(Rule):
    """In the training script `get_peft_model` is called after the optimizer was created for the
    same model, or it is called twice.

    ## What happens
    Nothing is raised. The optimizer holds the base weights, which `get_peft_model` has frozen, and
    none of the adapters: no step changes anything. If it is called twice, the second call freezes
    or renames the adapters of the first, and they are not loaded again.

    ## Why
    `get_peft_model` replaces layers inside the model. An optimizer created before does not have the
    new parameters, and a second call gets a model that already has adapters.

    ## Versions
    All versions of PEFT.

    ## Fix
    First the model, then the adapters once, then the optimizer from `[p for p in model.parameters()
    if p.requires_grad]`. The optimizer's line is moved if both are in the same block and nothing in
    between needs it. Where it is unclear which model is meant, only statements of the same block
    are compared; a loaded model is judged by its contents (LD503, LD505).

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD507"
    name = "adapters-in-wrong-order"
    summary = "A training script adds adapters after the optimizer was created, or twice."
    depth = "static"
    descriptions = (
        Symptom(r"\boptimizer\b.{0,40}\bbefore\b.{0,20}\b(?:get_peft_model|peft|lora|adapters?)\b"),
    )
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
        yield from slips(self, case, early, _EARLY, "adapters added", _AFTER)
        yield from slips(self, case, twice, _TWICE, "adapters first added", _ONE)
        if followed is not None and not case.has("script"):  # a notebook
            return
        yield from self._by_blocks(case.script, {slip.place.line for slip in (*early, *twice)})

    def _by_blocks(
        self, script: TrainingScript, known: Collection[int | None]
    ) -> Iterator[Finding]:
        """Of models that nobody knows where they come from: statements of one block."""
        path = str(script.path)
        proof = Proof("inferred", "read in the script")
        for early in script.order.early_optimizers:
            if early.line in known:
                continue
            source = f"{script.path.name}:{early.line}"
            yield self.finding(
                "error",
                f"The optimizer is created from {early.model}.parameters() before "
                f"get_peft_model in line {early.wrapped_line}: it holds only frozen weights "
                "and no adapter.",
                location=Location("file", path, early.line),
                evidence=(
                    Measurement("the line", early.code, source),
                    Measurement("adapters added in line", early.wrapped_line, script.path.name),
                ),
                proof=proof,
                fixes=(Fix(_AFTER, "manual"),),
            )
        for twice in script.order.wrapped_twice:
            if twice.line in known:
                continue
            source = f"{script.path.name}:{twice.line}"
            yield self.finding(
                "error",
                f"get_peft_model is called on {twice.model}, which already has adapters from "
                f"line {twice.first_line}: the first ones are frozen, replaced or not saved.",
                location=Location("file", path, twice.line),
                evidence=(
                    Measurement("the line", twice.code, source),
                    Measurement("called before in line", twice.first_line, script.path.name),
                ),
                proof=proof,
                fixes=(Fix(_ONE, "manual"),),
            )
