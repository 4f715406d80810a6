"""A rule's own examples, run, and what lora-doctor says of them.

The tests and the pages of ``docs/rules/`` run an example the same way, so a page quotes what a test
has seen, and a test fails when the words or the evidence on a page are no longer those of the tool.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import tempfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lora_doctor
from lora_doctor.engine import try_fixes
from lora_doctor.engine.rule import Example, Rule
from lora_doctor.reports._words import both_passed_words
from lora_doctor.reports.full import finding_text
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.finding import Finding
from lora_doctor.sandbox.worker import Worker

ROOT = Path(__file__).resolve().parent.parent
#: Findings of one example that are quoted.
_MOST = 2
#: What differs from machine to machine and run to run: sizes, times and measured numbers. Counts
#: stay, and so does everything that is said about them.
_MEASURED = re.compile(
    r"-?\d+(\.\d+)?e[+-]?\d+|-?\d+\.\d+|\d+ ?%|\b(inf|nan)\b|\b\d+ (ms|s|min|KiB|MiB|GiB|TiB)\b"
)
#: A folder that an example made for itself.
_TEMPORARY = re.compile(rf"{re.escape(tempfile.gettempdir())}/[^\s/]+/(\w+?)-\w{{8}}(?=[\s/])")
#: Where packages are installed.
_INSTALLED = re.compile(r"/[^\s'\"():,]*/(?=site-packages/)")


@cache
def installed() -> frozenset[str]:
    return frozenset(one.metadata["Name"] for one in importlib.metadata.distributions())


def stack() -> str:
    """The releases that decide what is said, as a page names them."""
    names = ("transformers", "peft")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def occurs_here(example: Example) -> bool:
    """Whether the installed stack is one on which the example occurs."""
    from packaging.specifiers import SpecifierSet

    return all(
        package in installed()
        and importlib.metadata.version(package) in SpecifierSet(versions, prereleases=True)
        for package, versions in example.requires.items()
    )


def is_fixed(example: Example) -> bool:
    """Whether the example is a recipe on a model that ``fix`` can be asked of, in this process."""
    return example.kind == "broken" and not (example.script or example.installed)


def what_is_checked(example: Example) -> tuple[Any, dict[str, Any]]:
    """The model argument of an example and further options."""
    if not example.loaded:
        options: dict[str, Any] = {"trust_remote_code": example.trust_remote_code}
        options["budgets"] = example.budgets or None
        if example.data:
            options |= {"data": example.data, "eval_data": example.eval_data or None}
        return example.model, options
    module, _, name = example.model.partition(":")
    model, options = getattr(importlib.import_module(module), name)()
    return model, options


def fixed(example: Example, worker: Worker) -> Diagnosis:
    """A broken example, found and fixed. Every fix is run, however slow the machine is, so that the
    same is said everywhere."""
    model, options = what_is_checked(example)
    with patch.object(try_fixes, "MOST_SECONDS", float("inf")):
        return lora_doctor.fix(
            model, dict(example.recipe) or None, depth=example.depth, unsafe_fixes=True,
            worker=worker, **options,
        )  # fmt: skip


def said(rule: type[Rule], diagnosis: Diagnosis) -> str:
    """The rule's findings as a terminal shows them, and the training contract before and after."""
    found = [finding for finding in diagnosis.findings if finding.rule == rule.code]
    parts = [_finding(diagnosis, _from_anywhere(finding)) for finding in found[:_MOST]]
    if len(found) > _MOST:
        parts.append(f"… {len(found) - _MOST} more findings of {rule.code}")
    contract = both_passed_words(diagnosis.before, diagnosis.after)
    if contract:
        parts.append(f"Training contract: {contract}")
    return "\n\n".join(parts) + "\n"


def _from_anywhere(value: Any) -> Any:
    """The same with the paths of this checkout, of its environment and of temporary folders cut
    short, before lines are broken: they break elsewhere where a path is longer."""
    if isinstance(value, str):
        return _INSTALLED.sub("", _TEMPORARY.sub(r"\1", value)).replace(str(ROOT), ".")
    if is_dataclass(value) and not isinstance(value, type):
        kept = {item.name: _from_anywhere(getattr(value, item.name)) for item in fields(value)}
        return replace(value, **kept)
    if isinstance(value, Mapping):
        return {key: _from_anywhere(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_from_anywhere(item) for item in value)
    return value


def _finding(diagnosis: Diagnosis, finding: Finding) -> str:
    lines = finding_text(diagnosis, finding, width=90).splitlines()
    return "\n".join(line.rstrip() for line in lines if not line.startswith("  more ")).strip()


def comparable(text: str) -> list[str]:
    """Words without what is measured and without the layout."""
    return _MEASURED.sub("N", text).split()
