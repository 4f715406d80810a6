"""LD535: a function or callback that a trainer is handed takes, or returns, something else."""

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
    UnfitHook,
    unfit_hooks,
)

_PROOF = Proof(
    "read", "the call in the source of the installed transformers, and the function's parameters"
)


class HookDoesNotFit(Rule):
    """A function or a callback of the script's own takes other arguments than the Trainer, to which
    it is handed, calls it with.

    ## What happens
    `TypeError: PrintLoss.on_log() got an unexpected keyword argument 'model'` when the first event
    comes, or `preprocess_logits_for_metrics() takes 1 positional argument but 2 were given` in the
    first evaluation, often hours into the run.

    ## Why
    The Trainer passes everything that it has to each method of a callback: the model, the
    optimizer, the dataloaders, by name. A method that takes only what it uses has no place for the
    rest; `**kwargs` is that place. `preprocess_logits_for_metrics` gets the labels beside the
    logits, `compute_loss_func` gets `num_items_in_batch`. What `compute_metrics` returns is a
    dictionary, to which the Trainer adds the loss: a number alone raises `'float' object does not
    support item assignment`.

    The calls are read in the source of the installed transformers. Functions with decorators, and
    those that are handed to a Trainer class of the script's own, are left alone.

    ## Versions
    What the installed release passes; nothing is reported where the set-up pins another one.

    ## Fix
    By hand: the parameters that it is called with, or `**kwargs`.

    ## Links
    https://github.com/huggingface/transformers/issues/9602
    """

    code = "LD535"
    name = "hook-does-not-fit"
    summary = "A function or callback takes other arguments than the Trainer calls it with."
    depth = "static"
    symptoms = (
        Symptom(
            r"\bon_(?:init|train|epoch|step|substep|log|save|evaluate|predict|optimizer)\w*\(\) "
            r"got an unexpected keyword argument '\w+'",
            "a callback of transformers",
        ),
        Symptom(
            r"\b(?:preprocess_logits\w*|compute_metrics|compute_loss_func)\(\) "
            r"(?:takes|missing|got an unexpected)"
        ),
        Symptom(
            r"'(?:numpy\.)?(?:float(?:64)?|int|NoneType|tuple)' object does not support item "
            r"assignment",
            raised_in=r"transformers[\\/]trainer\.py",
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/callback_without_kwargs.py",
            depth="static",
            why="on_log has no place for the model",
        ),
        Example(
            "broken",
            "tests/scripts/metric_without_name.py",
            requires={"transformers": ">=4.46"},  # eval_strategy
            depth="static",
            why="compute_metrics returns a number",
        ),
        Example("healthy", "tests/scripts/hooks_that_fit.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run called it
        for found in unfit_hooks(case.program):
            given = ", ".join(
                [
                    f"{found.call.positional} by position",
                    *(f"{one}=" for one in found.call.keywords),
                ]
            )
            yield self.finding(
                "error",
                _message(found),
                location=Location("file", found.place.file, found.place.line),
                evidence=(Measurement("called with", given, found.call.place),),
                proof=_PROOF,
                fixes=(Fix(_advice(found), "manual"),),
            )


def _message(found: UnfitHook) -> str:
    if found.returned:
        return (
            f"{found.name} {found.why}, and the Trainer adds the loss to the dictionary that it "
            "expects: the first evaluation raises TypeError."
        )
    return f"{found.name} {found.why}: the Trainer's call of it raises TypeError."


def _advice(found: UnfitHook) -> str:
    if found.returned:
        return 'Return a dictionary of names and numbers: {"accuracy": value}.'
    return f"Give {found.name} the parameters of the call, or **kwargs."
