"""Findings of the rules that hold a number against what a team asserts of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_doctor.rule_api import (
    NUMBERS,
    BudgetCheck,
    Case,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Severity,
    kept_budgets,
)

#: What a number depends on, by how its name begins.
_OF_DATA = ("supervised-", "rows-")


def out_of_budget(rule: Rule, case: Case, names: Sequence[str], proof: Proof) -> Iterator[Finding]:
    """A finding of the rule for each budget of these names that is not kept for sure."""
    for check in kept_budgets(case, names):
        if check.outcome == "kept":
            continue
        budget = check.budget
        surely = check.outcome == "broken"
        depends_on = "data" if budget.name.startswith(_OF_DATA) else "recipe"
        severity: Severity = budget.level if surely else "warning"
        yield rule.finding(
            severity,
            f"The budget {budget.name} is {'' if surely else 'possibly '}not met: {check.words()}.",
            location=Location("environment", f"budgets.{budget.name}"),
            evidence=_evidence(check),
            proof=proof,
            fixes=(
                Fix(f"Change the {depends_on}, or the budget in the project's file.", "manual"),
            ),
        )


def _evidence(check: BudgetCheck) -> tuple[Measurement, ...]:
    budget = check.budget
    return (
        Measurement(NUMBERS[budget.name][1], check.amount(), check.detail),
        Measurement("limit", budget.words(), "budgets of the project"),
    )
