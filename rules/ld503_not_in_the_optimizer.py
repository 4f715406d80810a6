"""LD503: trainable weights that no optimizer step will ever move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lora_doctor.engine.case import Case
from lora_doctor.engine.rule import (
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.model.modules import pattern_of
from lora_doctor.text import quoted

if TYPE_CHECKING:
    from lora_doctor.evidence.optimizer import OptimizerState, TrainableTensor


class NotInTheOptimizer(Rule):
    """Adapter parameters that are in no parameter group of the optimizer, or only in groups whose
    learning rate is 0 for the whole run.

    ## What happens
    Nothing is raised: gradients arrive, the loss is logged, and the weights stay as they are. The
    saved adapter is the untrained one. Or the optimizer raises `optimizer got an empty parameter
    list`.

    ## Why
    An optimizer holds the tensors that it was given, not names. Made before `get_peft_model`, it
    holds the base weights, which are frozen now, and not the adapters, which did not exist; made
    before a second `get_peft_model`, a copy or an unload, it holds tensors that are in no model
    any more. Groups that are put together by name ("only when `llm_lr` is above 0") leave out what
    no name matches; a phase that starts at learning rate 0 is right when a later phase has one.

    ## Versions
    All: this is torch.

    ## Fix
    By hand, in the training script: make the optimizer last, of
    `[p for p in model.parameters() if p.requires_grad]`, or `optimizer.add_param_group` for what is
    missing. Needs the optimizer: `lora_doctor.check(model, optimizer=optimizer)`, with
    `scheduler=` and `planned_steps=`, or a mapping of phase to groups for a schedule of phases.

    ## Links
    https://docs.pytorch.org/docs/stable/optim.html
    """

    code = "LD503"
    name = "not-in-the-optimizer"
    summary = "Trainable weights are in no optimizer group, or only at learning rate 0."
    depth = "meta"
    symptoms = (
        Symptom(r"optimizer got an empty parameter list"),
        Symptom(r"some parameters appear in more than one parameter group"),
    )
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
            "healthy",
            "tests.models:optimizer_in_phases",
            loaded=True,
            why="learning rate 0 in the first phase only",
        ),
        Example(
            "healthy",
            "tests.models:optimizer_with_warm_up",
            loaded=True,
            why="a scheduler that starts at 0",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        state = case.optimizer
        if not state.adapters:
            if not any(item.adapter for item in state.tensors):
                yield self._too_early(case, state)
            return
        lost = state.lost(adapter=True)
        others = state.lost(adapter=False)
        if lost or others:
            yield self._lost(case, state, lost, others)
        twice = [item for item in state.tensors if item.times > 1]
        if twice:
            yield self.finding(
                "warning",
                f"The optimizer holds {_count(twice)} more than once: a step is taken for each.",
                location=Location("module", twice[0].name),
                evidence=(
                    Measurement(
                        "held more than once", quoted(_patterns(twice), 4), "the optimizer"
                    ),
                ),
                proof=Proof("measured", "the optimizer's groups were read"),
                fixes=(Fix("Put each parameter into one group of one optimizer.", "manual"),),
            )

    def _too_early(self, case: Case, state: OptimizerState) -> Finding:
        coming = case.structure.injection.adapter_parameters
        return self.finding(
            "error",
            "The optimizer was made before get_peft_model: the adapters that the recipe asks for "
            f"({coming:,} parameters) do not exist yet, and it will not hold them.",
            location=Location("module", case.structure.model_class),
            evidence=(
                Measurement("tensors held", state.held, "the optimizer"),
                Measurement("adapter parameters in the model", 0, case.structure.model_class),
                Measurement("adapter parameters after get_peft_model", coming, "installed PEFT"),
            ),
            proof=Proof("measured", "the optimizer's groups were held against the model"),
            fixes=_fixes(),
        )

    def _lost(
        self,
        case: Case,
        state: OptimizerState,
        lost: Sequence[TrainableTensor],
        others: Sequence[TrainableTensor],
    ) -> Finding:
        total = sum(item.adapter for item in state.tensors)
        sentences = []
        if lost:
            sentences.append(
                f"{len(lost)} of {total} trainable adapter tensors will never be updated: "
                f"{_why(lost)}"
            )
        if others:
            what = "other trainable tensors" if lost else "trainable tensors outside the adapters"
            sentences.append(f"{len(others)} {what} will not be either: {_why(others)}"
                             if lost else f"{len(others)} {what} will never be updated: "
                             f"{_why(others)}")  # fmt: skip
        worst = lost or others
        return self.finding(
            "error" if lost and len(lost) == total else "warning",
            "; ".join(sentences) + ".",
            location=Location("module", worst[0].name),
            evidence=_evidence(state, lost, others),
            proof=Proof("measured", "the optimizer's groups were held against the model's "
                        "parameters, object by object"),
            fixes=_fixes(),
        )  # fmt: skip


def _why(items: Sequence[TrainableTensor]) -> str:
    absent = [item for item in items if item.fate == "in no group"]
    still = [item for item in items if item.fate == "learning rate 0"]
    parts = []
    if absent:
        parts.append(f"{len(absent)} in no group ({quoted(_patterns(absent), 2)})")
    if still:
        parts.append(f"{len(still)} only at learning rate 0 ({quoted(_patterns(still), 2)})")
    return ", ".join(parts)


def _patterns(items: Sequence[TrainableTensor]) -> list[str]:
    return list(dict.fromkeys(pattern_of(item.name) for item in items))


def _count(items: Sequence[TrainableTensor]) -> str:
    return f"{len(items)} tensors" if len(items) > 1 else items[0].name


def _evidence(
    state: OptimizerState,
    lost: Sequence[TrainableTensor],
    others: Sequence[TrainableTensor],
) -> tuple[Measurement, ...]:
    lines = []
    for name, groups in state.phases:
        text = ", ".join(f"{count} tensors at {rate:g}" for count, rate in groups)
        lines.append(Measurement(name or "groups", text or "none", "the optimizer"))
    if lost:
        lines.append(
            Measurement("adapter tensors not updated", quoted(_patterns(lost), 4), "identity")
        )
    if others:
        lines.append(Measurement("others not updated", quoted(_patterns(others), 4), "identity"))
    if state.frozen:
        text = f"{len(state.frozen)} of {state.held}: {quoted(state.frozen, 2)}"
        lines.append(Measurement("held and frozen", text, "requires_grad"))
    if state.foreign:
        text = f"{state.foreign} of {state.held}"
        if state.foreign_shared:
            text += f"; share memory with {quoted(state.foreign_shared, 2)} and get no gradient"
        lines.append(Measurement("held and not in the model", text, "identity"))
    lines += [Measurement("note", note, "the scheduler") for note in state.notes]
    return tuple(lines)


def _fixes() -> tuple[Fix, ...]:
    return (
        Fix(
            "Make the optimizer after the last get_peft_model, of [p for p in model.parameters() "
            "if p.requires_grad]; the scheduler after it.",
            "manual",
        ),
        Fix(
            'Or add what is missing: optimizer.add_param_group({"params": [...], "lr": ...}), '
            "before the scheduler is made.",
            "manual",
        ),
    )
