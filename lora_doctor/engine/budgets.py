"""The numbers of a case that a team's budgets are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from lora_doctor.errors import EvidenceError, LoraDoctorError
from lora_doctor.results.budget import Budget, BudgetCheck, held_against
from lora_doctor.text import gib

if TYPE_CHECKING:
    from lora_doctor.engine.case import Case
    from lora_doctor.results.depth import Depth
    from lora_doctor.results.supervision import Supervision

#: Of a model, what adapters are put on.
_LAYERS = ("linear", "conv1d", "parameter")


def check_budget(case: Case, budget: Budget) -> BudgetCheck:
    """The budget with its number.

    Raises:
        EvidenceError: the number cannot be had.
    """
    return _MEASURES[budget.name](case, budget)


def kept_budgets(case: Case, names: Sequence[str]) -> list[BudgetCheck]:
    """The budgets of these names that are set, each with its number.

    Raises:
        EvidenceError: a number cannot be had.
    """
    return [check_budget(case, one) for one in case.settings.budgets if one.name in names]


def check_budgets(case: Case, names: Sequence[str]) -> tuple[BudgetCheck, ...]:
    """The budgets of these names, each with its number or why there is none."""
    return tuple(
        _or_why_not(case, budget) for budget in case.settings.budgets if budget.name in names
    )


def why_open(checks: Sequence[BudgetCheck], depth: Depth) -> str | None:
    """Why budgets leave the question open; ``None`` where each was measured, or nobody asked for a
    depth at which one could be."""
    if depth == "static":
        return None
    told = [f"{one.budget.name} ({one.detail})" for one in checks if one.outcome == "unmeasured"]
    return f"a budget could not be measured: {'; '.join(told)}" if told else None


def _or_why_not(case: Case, budget: Budget) -> BudgetCheck:
    try:
        return check_budget(case, budget)
    except LoraDoctorError as error:
        return BudgetCheck(budget, "unmeasured", detail=str(error))


def _peak_memory(case: Case, budget: Budget) -> BudgetCheck:
    plan = case.memory_plan
    one = plan.recipe
    if one.total is None or one.high is None:
        if budget.most is not None and one.low > budget.most:
            return held_against(budget, one.low, one.low, one.low, f"at least {gib(one.low)}")
        reasons = "; ".join(f"{part.name}: {part.formula}" for part in one.missing)
        remedy = next((part.remedy for part in one.missing if part.remedy), None)
        raise EvidenceError(f"a part of the memory is not known ({reasons})", remedy=remedy)
    tokens = f" of {plan.length} tokens" if plan.length else ""
    detail = f"{gib(one.low)} to {gib(one.high)}, for a batch of {plan.batch_size}{tokens}"
    return held_against(budget, one.total, one.low, one.high, detail)


def _trainable_share(case: Case, budget: Budget) -> BudgetCheck:
    injection = case.structure.injection
    if not injection.ok or not injection.total_parameters:
        raise EvidenceError("PEFT put no adapters on the class on the meta device")
    part, whole = injection.trainable_parameters, injection.total_parameters
    return _share(budget, part, whole, "parameters")


def _adapted_share(case: Case, budget: Budget) -> BudgetCheck:
    structure = case.structure
    if not structure.injection.ok:
        raise EvidenceError("PEFT put no adapters on the class on the meta device")
    groups = [one for one in structure.groups if one.kind in _LAYERS and one.role != "head"]
    return _share(budget, sum(one.adapted for one in groups),
                  sum(one.count for one in groups), "linear layers")  # fmt: skip


def _supervised_tokens(case: Case, budget: Budget) -> BudgetCheck:
    found = _rows_of(case)
    value = found.supervised_tokens
    return held_against(budget, value, value, value, f"in {found.rows_seen:,} rows")


def _supervised_share(case: Case, budget: Budget) -> BudgetCheck:
    found = _rows_of(case)
    return _share(budget, found.supervised_tokens, found.tokens, "tokens")


def _rows_cut(case: Case, budget: Budget) -> BudgetCheck:
    found = _rows_of(case)
    return _share(budget, found.over_limit.count, found.rows_seen, "rows")


def _rows_of(case: Case) -> Supervision:
    found = case.supervision
    if not found.rows_seen:
        raise EvidenceError("no rows of training data were looked at")
    return found


def _share(budget: Budget, part: int, whole: int, what: str) -> BudgetCheck:
    if not whole:
        raise EvidenceError(f"there are no {what}")
    value = part / whole
    return held_against(budget, value, value, value, f"{part:,} of {whole:,} {what}")


_MEASURES: Mapping[str, Callable[[Case, Budget], BudgetCheck]] = {
    "peak-memory": _peak_memory,
    "trainable-share": _trainable_share,
    "adapted-share": _adapted_share,
    "supervised-tokens": _supervised_tokens,
    "supervised-share": _supervised_share,
    "rows-cut": _rows_cut,
}
