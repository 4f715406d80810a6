"""``junit``: JUnit XML, which Jenkins, GitLab and most others show as tests.

Each rule that was asked is a test case: passed, failed (an error or a warning), or skipped with its
reason. A question that stayed open is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from lora_doctor.reports._records import UNDETERMINED, Record, accepted_records, records, set_up
from lora_doctor.reports._text import visible

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

NAME = "junit"


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """One suite, named after the set-up."""
    found = records(diagnosis)
    suite = ElementTree.Element("testsuite", name=set_up(diagnosis))
    for record in found:
        _case(suite, record)
    for record, accepted in accepted_records(diagnosis):
        why = "known: it is in" if accepted.by == "baseline" else "ignored:"
        case = _testcase(suite, record)
        ElementTree.SubElement(case, "skipped", message=visible(f"{why} {accepted.reason}"))
    for rule in sorted(diagnosis.passed):
        ElementTree.SubElement(suite, "testcase", classname="lora-doctor", name=visible(rule))
    for item in diagnosis.skipped:
        case = ElementTree.SubElement(
            suite, "testcase", classname="lora-doctor", name=visible(f"{item.rule} {item.name}")
        )
        ElementTree.SubElement(case, "skipped", message=visible(item.reason))
    budgets = [one for one in diagnosis.budgets if one.outcome in ("kept", "unmeasured")]
    for one in budgets:
        case = ElementTree.SubElement(
            suite, "testcase", classname="lora-doctor", name=visible(f"budget {one.budget.name}")
        )
        if one.outcome == "unmeasured":
            ElementTree.SubElement(case, "error", message=visible(one.detail), type="error")
        ElementTree.SubElement(case, "system-out").text = visible(one.words())
    counts = {
        "tests": len(suite),
        "failures": len(suite.findall("testcase/failure")),
        "errors": len(suite.findall("testcase/error")),
        "skipped": len(suite.findall("testcase/skipped")),
    }
    suite.attrib.update({name: str(count) for name, count in counts.items()})
    suite.set("time", f"{diagnosis.seconds:.3f}")
    return _written([suite])


def join(texts: Mapping[str, str]) -> str:
    """One file with a suite for each set-up, named after it."""
    suites = []
    for name, text in texts.items():
        (suite,) = ElementTree.fromstring(text)
        suite.set("name", f"{visible(name)}: {suite.get('name')}")
        suites.append(suite)
    return _written(suites)


def _written(suites: list[ElementTree.Element]) -> str:
    root = ElementTree.Element("testsuites")
    root.extend(suites)
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="us-ascii").decode("ascii")
    return f"{body}\n"


def _testcase(suite: ElementTree.Element, record: Record) -> ElementTree.Element:
    case = ElementTree.SubElement(
        suite, "testcase", classname="lora-doctor", name=f"{record.rule} {record.name}"
    )
    if record.file:
        case.set("file", record.file)
    if record.line:
        case.set("line", str(record.line))
    return case


def _case(suite: ElementTree.Element, record: Record) -> None:
    case = _testcase(suite, record)
    text = f"{record.where}: {record.message}"
    if record.fix:
        text += f"\nFix: {record.fix}"
    if record.level == "info":
        ElementTree.SubElement(case, "system-out").text = text
        return
    kind = "error" if record.rule == UNDETERMINED else "failure"
    told = ElementTree.SubElement(case, kind, message=record.message, type=record.level)
    told.text = text
