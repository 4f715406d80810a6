"""LD503: trainable weights that are in no parameter group of the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

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
    quoted,
)
from lora_doctor.rules._dry_run_script import ADAPTERS_IN_TURN
from lora_doctor.rules._optimizer import not_updated
from lora_doctor.rules._training_signal import SAME_LOSS

if TYPE_CHECKING:
    from lora_doctor.rule_api import OptimizerState

_FIXES = (
    Fix(
        "Create the optimizer after the last get_peft_model, from [p for p in "
        "model.parameters() if p.requires_grad], and the scheduler after it.",
        "manual",
    ),
    Fix(
        "Or add the missing parameters: "
        'optimizer.add_param_group({"params": [...], "lr": ...}), before the scheduler is '
        "created.",
        "manual",
    ),
)
_SEVERAL = Fix(
    "With several adapters, create the optimizer from the weights of all of them, by name: "
    '[p for name, p in model.named_parameters() if "lora_" in name]. One that is only compared '
    "with is called under torch.no_grad().",
    "manual",
)


class NotInTheOptimizer(Rule):
    """Adapter parameters that are in no parameter group of the optimizer.

    ## What happens
    Nothing is raised: gradients arrive, the loss is logged, and the weights stay as they are. The
    saved adapter is the untrained one. Or the optimizer raises `optimizer got an empty parameter
    list`.

    ## Why
    An optimizer holds the tensors that it was given, not names. Created before `get_peft_model`, it
    holds the base weights, which are now frozen, and not the adapters, which did not exist yet;
    created before a second `get_peft_model`, a copy or an unload, it holds tensors that no longer
    belong to the model. Groups that are selected by name ("only when `llm_lr` is above 0") leave
    out what no name matches. With several adapters, `set_adapter` switches `requires_grad` of the
    others off: an optimizer of what requires a gradient then holds the active adapter only, and
    never moves one that becomes active later.

    ## Versions
    All versions of torch.

    ## Fix
    By hand, in the training script: create the optimizer last, from `[p for p in model.parameters()
    if p.requires_grad]`, or call `optimizer.add_param_group` for the missing parameters. Needs the
    optimizer: `lora_doctor.check(model, optimizer=optimizer)`, with `scheduler=` and
    `planned_steps=`, or a mapping of phase to groups for a schedule of phases.

    ## Links
    https://docs.pytorch.org/docs/stable/optim.html
    """

    code = "LD503"
    name = "not-in-the-optimizer"
    summary = "Trainable weights are in no parameter group of the optimizer."
    depth = "meta"
    symptoms = (
        Symptom(SAME_LOSS),
        Symptom(r"optimizer got an empty parameter list"),
        Symptom(r"No inf checks were recorded (?:for|prior to)"),
    )
    told_as = ("The loss stays the same from step to step.",)
    examples = (
        Example(
            "broken",
            "tests.models:optimizer_before_adapters",
            loaded=True,
            why="made before get_peft_model",
        ),
        Example(
            "broken",
            "tests.models:optimizer_without_adapters_in_any_phase",
            loaded=True,
            why="groups by name, which leave the adapters out while their learning rate is 0",
        ),
        Example(
            "broken",
            "",
            script=ADAPTERS_IN_TURN,
            why="set_adapter had switched the second adapter off when the optimizer was created",
        ),
        Example(
            "healthy",
            "",
            script=ADAPTERS_IN_TURN.replace("if p.requires_grad", 'if "lora_" in name'),
            why="both adapters are in it",
        ),
        Example(
            "healthy",
            "tests.models:optimizer_in_phases",
            loaded=True,
            why="in a group of each phase",
        ),
        Example(
            "healthy",
            "tests.models:optimizer_at_learning_rate_zero",
            loaded=True,
            why="held, at learning rate 0: another failure",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        state = case.optimizer
        if not state.adapters:
            yield self._too_early(case, state)
            return
        fixes = (_SEVERAL, *_FIXES) if _several(case) else _FIXES
        yield from not_updated(
            self, state, "in no group", "in no parameter group", fixes, *_held(state)
        )

    def _too_early(self, case: Case, state: OptimizerState) -> Finding:
        coming = case.structure.injection.adapter_parameters
        return self.finding(
            "error",
            "The optimizer was created before get_peft_model: the adapters of the recipe "
            f"({coming:,} parameters) did not exist yet, so it will not update them.",
            location=Location("module", case.structure.model_class),
            evidence=(
                Measurement("tensors held", state.held, "the optimizer"),
                Measurement("adapter parameters in the model", 0, case.structure.model_class),
                Measurement("adapter parameters after get_peft_model", coming, "installed PEFT"),
            ),
            proof=Proof(
                "measured",
                ("the tensors in the optimizer's groups were compared with the model's parameters"),
            ),
            fixes=_FIXES,
        )


def _several(case: Case) -> bool:
    """Whether a dry run saw several adapters of the model being called to train."""
    return case.has("dry_run") and len(case.dry_run.signal.adapters) > 1


def _held(state: OptimizerState) -> Iterator[Measurement]:
    """What the optimizer holds instead: frozen weights, and tensors of no model."""
    if state.frozen:
        text = f"{len(state.frozen)} of {state.held}: {quoted(state.frozen, 2)}"
        yield Measurement("in the optimizer, frozen", text, "requires_grad")
    if state.foreign:
        text = f"{state.foreign} of {state.held}"
        if state.foreign_shared:
            text += f"; share memory with {quoted(state.foreign_shared, 2)} and get no gradient"
        yield Measurement("in the optimizer, not in the model", text, "tensors, by identity")
