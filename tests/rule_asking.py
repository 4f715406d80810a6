"""To ask a rule on a case that holds just what it reads; no model is built.

The fixture `gathered` of `conftest` replaces what the functions give that a rule calls.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace as Stub
from typing import Any

from lora_doctor.engine.registry import find_rules
from lora_doctor.results.finding import Finding

RULES = {rule.code: rule for rule in find_rules()}
Ask = Callable[..., list[Finding]]


def ask(code: str, **evidence: Any) -> list[Finding]:
    """The findings of a rule on a case with this evidence."""
    return list(RULES[code]().check(Stub(**evidence)))


def one(code: str, **evidence: Any) -> Finding:
    (finding,) = ask(code, **evidence)
    return finding


def evidence(finding: Finding) -> dict[str, Any]:
    return {line.what: line.value for line in finding.evidence}


def fixes(finding: Finding) -> list[str]:
    return [fix.title for fix in finding.fixes]


def versions(**installed: str) -> Stub:
    return Stub(version=installed.get)
