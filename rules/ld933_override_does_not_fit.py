"""LD933: a method of the script's own Trainer takes less than the installed Trainer gives it."""

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
    narrow_overrides,
    quoted,
)

_PROOF = Proof(
    "read", "the call in the source of the installed Trainer, and the method's parameters"
)
#: What has to be due for the call, and when the run ends with it.
_ENDS = {
    "": "as training begins",
    "log": "at the first log",
    "save": "at the first checkpoint",
    "evaluate": "at the first evaluation",
}


class OverrideDoesNotFit(Rule):
    """A class that inherits `Trainer` replaces a method, and the installed Trainer calls it with an
    argument that it does not take.

    ## What happens
    `TypeError: CustomTrainer.compute_loss() got an unexpected keyword argument
    'num_items_in_batch'` in the first step, `training_step() takes 3 positional arguments but 4
    were given`, or the same of `log`, `save_model`, `_get_train_sampler` or another method, when
    the run comes to it.

    ## Why
    Releases of transformers pass more arguments to their own methods than earlier ones, and a
    method that was written for an earlier release has no place for them.

    The calls are read in the installed `Trainer`, from `train` on; what only an option reaches is
    left out, and so is what stands in a method that the class, or the trainer of TRL that it
    inherits, replaces without calling the inherited one. Calls in an evaluation, at a log or at a
    checkpoint count where the arguments of the run ask for these.

    ## Versions
    `compute_loss` and `training_step` get `num_items_in_batch` since transformers 4.46, `log`
    gets `start_time` since 4.47, `_get_train_sampler` the dataset since 4.52.

    ## Fix
    By hand: the parameter, with a default (`num_items_in_batch=None`), or `**kwargs`; a method that
    calls the inherited one hands it on.

    ## Links
    https://github.com/huggingface/transformers/issues/36331,
    https://github.com/zai-org/GLM-4/issues/652,
    https://github.com/texttron/tevatron/pull/160,
    https://github.com/hiyouga/LlamaFactory/issues/8207,
    https://github.com/AkaliKong/MiniOneRec/issues/15
    """

    code = "LD933"
    name = "override-does-not-fit"
    summary = "A method of the script's own Trainer takes less than it is given."
    depth = "static"
    symptoms = (
        Symptom(
            r"\bcompute_loss\(\) got an unexpected keyword argument '\w+'", "transformers >= 4.46"
        ),
        Symptom(
            r"Trainer\w*\.(?!__init__)\w+\(\) got an unexpected keyword argument "
            r"'(?:num_items_in_batch|start_time|learning_rate|return_outputs|_internal_call)'",
        ),
        Symptom(
            r"\b(?:training_step|_get_train_sampler|_maybe_log_save_evaluate|get_batch_samples"
            r"|Trainer\w*\.log)\(\) takes (?:from )?\d.* positional arguments? .*were given",
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/loss_of_an_earlier_release.py",
            depth="static",
            why="compute_loss has no num_items_in_batch",
            requires={"transformers": ">=4.48"},
        ),
        Example("healthy", "tests/scripts/loss_of_this_release.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run called it
        for found in narrow_overrides(case.program):
            names = quoted(found.not_taken or found.not_given)
            what = "with" if found.not_taken else "without"
            lacks = "does not take" if found.not_taken else "requires"
            ends = _ENDS[next(iter(found.call.due), "")]
            add = f"Add {found.not_taken[0]}=None to" if found.not_taken else "Give defaults to"
            yield self.finding(
                "error",
                f"The Trainer calls {found.owner}.{found.method} {what} {names}, which it "
                f"{lacks}: TypeError {ends}.",
                location=Location("file", found.place.file, found.place.line),
                evidence=(Measurement(f"called {what}", names, found.call.place),),
                proof=_PROOF,
                fixes=(Fix(f"{add} the parameters of {found.method}.", "manual"),),
            )
