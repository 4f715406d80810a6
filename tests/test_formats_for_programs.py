"""The formats that other programs read, each read by such a program or by a model of its format."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_doctor import reports
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.finding import Finding, Location, Measurement, Proof
from lora_doctor.results.fingerprints import fingerprints
from lora_doctor.results.formats import can_join, render_joint, streams_results
from lora_doctor.rules.ld201_no_target_matches import NoTargetMatches
from lora_doctor.static.model_source import ModelSource
from tests import diagnoses
from tests.cli import completed as run

NAMES = list(diagnoses.ALL)
SCHEMAS = Path(__file__).parent / "data" / "schemas"
#: GitLab's documentation, "Code Quality report format", as a schema: it publishes none.
GITLAB = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["description", "check_name", "fingerprint", "severity", "location"],
        "additionalProperties": False,
        "properties": {
            "description": {"type": "string", "minLength": 1},
            "check_name": {"type": "string", "minLength": 1},
            "fingerprint": {"type": "string", "minLength": 1},
            "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
            "location": {
                "type": "object",
                "required": ["path", "lines"],
                "properties": {
                    "path": {"type": "string", "pattern": r"^(?!\./).+"},
                    "lines": {
                        "type": "object",
                        "required": ["begin"],
                        "properties": {"begin": {"type": "integer", "minimum": 1}},
                    },
                },
            },
        },
    },
}


def finding(message: str, location: Location, severity: Any = "error") -> Finding:
    evidence = (Measurement("layers matched", "0 of 48", "installed PEFT"),)
    proof = Proof("executed", "PEFT refused the config")
    return Finding("LD201", "no-target-matches", severity, message, location, evidence, proof)


def diagnosis(*findings: Finding, **changes: Any) -> Diagnosis:
    source = ModelSource("folder", "checkpoints/base")
    return Diagnosis(source, Recipe(), "tiny", {"lora_doctor": "1"}, findings, **changes)


IN_SCRIPT = Location("file", "train.py", 12)
AT_KEY = Location("recipe", "target_modules")


@pytest.mark.parametrize("name", NAMES)
def test_sarif_is_sarif(name: str) -> None:
    """Read by a model of SARIF 2.1.0; nothing of a result or a location is unknown to it."""
    from sarif_pydantic import Sarif

    text = reports.render(diagnoses.ALL[name](), "sarif")
    (run,) = Sarif.model_validate_json(text).runs
    sent = json.loads(text)["runs"][0]
    assert len(run.results or []) == len(sent["results"])
    for result in run.results or []:
        assert result.rule_id == run.tool.driver.rules[result.rule_index].id
        assert not result.model_extra and not result.locations[0].model_extra
        assert result.message.text
        # GitHub refuses the whole log for one result without.
        uri = result.locations[0].physical_location.artifact_location.uri
        assert uri and not re.match(r"\w+:(?!///)", uri)
    open_question = diagnoses.ALL[name]().undetermined is not None
    assert run.invocations[0].execution_successful == (not open_question)


@pytest.mark.parametrize("name", NAMES)
def test_sarif_keeps_to_its_published_schema(name: str) -> None:
    schema = json.loads((SCHEMAS / "sarif-2.1.0-rtm.4.json").read_text(encoding="utf-8"))
    text = reports.render(diagnoses.ALL[name](), "sarif")
    jsonschema.Draft4Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("name", NAMES)
def test_junit_keeps_to_its_published_schema(name: str) -> None:
    xmlschema = pytest.importorskip("xmlschema")
    schema = xmlschema.XMLSchema(str(SCHEMAS / "junit-10.xsd"))
    schema.validate(reports.render(diagnoses.ALL[name](), "junit"))


def test_sarif_brings_the_documentation_of_its_rules() -> None:
    """GitHub refuses a rule without these texts; one of somebody else has its name in words."""
    ours, theirs = finding("nothing matches", IN_SCRIPT), finding("too small", IN_SCRIPT)
    theirs = replace(theirs, rule="ACME1", name="rank-too-small")
    (run,) = json.loads(reports.render(diagnosis(ours, theirs), "sarif"))["runs"]
    other, known = run["tool"]["driver"]["rules"]
    assert other["shortDescription"] == other["fullDescription"] == {"text": "Rank too small."}
    assert "markdown" not in other["help"]
    assert known["shortDescription"]["text"] == NoTargetMatches.summary
    assert known["fullDescription"]["text"].startswith("`get_peft_model` raises")
    assert "## Fix" in known["help"]["markdown"] and known["helpUri"] in known["help"]["text"]


def test_sarif_points_at_the_line() -> None:
    text = reports.render(diagnosis(finding("nothing matches", IN_SCRIPT)), "sarif")
    (result,) = json.loads(text)["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "train.py"}, "region": {"startLine": 12}}


def test_sarif_names_the_model_where_there_is_no_file() -> None:
    at_key = diagnosis(finding("nothing matches", AT_KEY))
    (run,) = json.loads(reports.render(at_key, "sarif"))["runs"]
    (result,) = run["results"]
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "checkpoints/base"}
    }
    # The category is what stands before the last slash: a whole model, never its organisation.
    assert run["automationDetails"]["id"] == "lora-doctor/checkpoints/base/"


@pytest.mark.parametrize("name", ["sarif", "junit", "gitlab", "markdown", "json-lines"])
def test_one_file_holds_the_results_of_several_set_ups(name: str) -> None:
    same = {one: diagnoses.phi3() for one in ("sft", "dpo")}
    text = render_joint(same, name)
    alone = reports.render(diagnoses.phi3(), name)
    if name == "sarif":
        runs = json.loads(text)["runs"]
        assert [run["automationDetails"]["id"] for run in runs] == [
            "lora-doctor/sft/",
            "lora-doctor/dpo/",
        ]
        assert [len(run["results"]) for run in runs] == [1, 1]
    elif name == "junit":
        sft, dpo = ElementTree.fromstring(text)
        assert (sft.get("name"), dpo.get("name")) == ("sft: arch:phi3", "dpo: arch:phi3")
        assert len(sft) == len(dpo) == len(ElementTree.fromstring(alone)[0])
    elif name == "gitlab":
        issues = json.loads(text)
        jsonschema.Draft202012Validator(GITLAB).validate(issues)
        assert len({issue["fingerprint"] for issue in issues}) == len(issues) == 2
        assert text == render_joint(same, name), "the next pipeline finds the same issues"
    else:
        assert text == alone * 2
    assert can_join(name) and not can_join("html") and not can_join("json")
    assert streams_results(name) == (name in ("markdown", "json-lines"))


@pytest.mark.parametrize("name", NAMES)
def test_junit_is_read_back(name: str, tmp_path: Path) -> None:
    from junitparser import Error, Failure, JUnitXml, Skipped

    given = diagnoses.ALL[name]()
    file = tmp_path / "junit.xml"
    file.write_text(reports.render(given, "junit"), "utf-8")
    (suite,) = JUnitXml.fromfile(str(file))
    kinds = [type(result) for case in suite for result in case.result]
    failing = [one for one in given.findings if one.severity != "info"]
    assert suite.failures == kinds.count(Failure) == len(failing)
    assert suite.skipped == kinds.count(Skipped) == len(given.skipped)
    assert suite.errors == kinds.count(Error) == (given.undetermined is not None)


@pytest.mark.parametrize("name", NAMES)
def test_gitlab_is_a_code_quality_report(name: str) -> None:
    issues = json.loads(reports.render(diagnoses.ALL[name](), "gitlab"))
    jsonschema.Draft202012Validator(GITLAB).validate(issues)
    assert len({issue["fingerprint"] for issue in issues}) == len(issues)


def commands(text: str) -> list[tuple[str, dict[str, str], str]]:
    """Workflow commands as GitHub's runner reads them."""

    def plain(escaped: str) -> str:
        for code, sign in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")):
            escaped = escaped.replace(code, sign)
        return escaped.replace("%25", "%")

    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"::(\w+) ([^:]*)::(.*)", line)
        assert match, line
        pairs = (pair.split("=", 1) for pair in match[2].split(","))
        found.append((match[1], {key: plain(value) for key, value in pairs}, plain(match[3])))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_github_prints_a_command_for_each_finding(name: str) -> None:
    given = diagnoses.ALL[name]()
    found = commands(reports.render(given, "github"))
    assert len(found) >= len(given.findings)
    assert {command for command, _, _ in found} <= {"error", "warning", "notice"}


def test_github_points_at_the_line() -> None:
    text = reports.render(diagnosis(finding("50% match, or: none", IN_SCRIPT)), "github")
    ((command, properties, told),) = commands(text)
    assert command == "error" and properties["file"] == "train.py" and properties["line"] == "12"
    assert told == "50% match, or: none"


@pytest.mark.parametrize("name", NAMES)
def test_json_lines_are_the_findings_of_json(name: str) -> None:
    given = diagnoses.ALL[name]()
    lines = [json.loads(line) for line in reports.render(given, "json-lines").splitlines()]
    of_json = json.loads(reports.render(given, "json"))["findings"]
    told = [
        {key: value for key, value in line.items() if key not in ("model", "fingerprint")}
        for line in lines
        if line["rule"] != "undetermined"
    ]
    assert sorted(map(json.dumps, told)) == sorted(map(json.dumps, of_json))


def test_grouped_names_a_file_once() -> None:
    other = finding("another", Location("file", "train.py", 3), "warning")
    text = reports.render(diagnosis(finding("one", IN_SCRIPT), other), "grouped")
    lines = text.splitlines()
    assert lines[0] == "train.py:" and text.count("train.py:\n") == 1
    assert "one [error, train.py:12]" in lines[1] and "another [warning, train.py:3]" in lines[2]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(max_size=80))
def test_markdown_of_anything_is_one_row(text: str) -> None:
    """A pipe, a line feed, a mention or a tag in a name stays text in its cell."""
    shown = reports.render(diagnosis(finding(text or "x", AT_KEY)), "markdown")
    rows = [line for line in shown.split("\n") if line.startswith("| LD201")]
    (row,) = rows
    assert len(re.findall(r"(?<!\\)\|", row.replace("\\\\", ""))) == 6
    assert not re.search(r"@(?!&#8203;)", row) and not re.search(r"(?<!\\)<", row)


# --- fingerprints ---------------------------------------------------------------------------------


def test_fingerprints_outlive_lines_and_numbers() -> None:
    before = fingerprints([finding("0 of 48 match", IN_SCRIPT)])
    after = fingerprints([finding("0 of 32 match", Location("file", "train.py", 90))])
    assert before == after


def test_fingerprints_of_a_report_differ() -> None:
    names = fingerprints([finding("a", AT_KEY), finding("b", AT_KEY), finding("c", IN_SCRIPT)])
    assert len(set(names)) == 3


# --- several in one run ---------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path) -> Path:
    tmp_path.joinpath("train.py").write_text("from peft import LoraConfig\nc = LoraConfig(r=8)\n")
    return tmp_path


def test_several_formats_in_one_run(work: Path) -> None:
    outputs = ("--output", "sarif=a.sarif", "--output", "junit=b.xml", "--output", "json=c.json")
    done = run("check", "train.py", "--output-format", "concise", *outputs, cwd=work)
    assert done.stdout == run("check", "train.py", "--output-format", "concise", cwd=work).stdout
    assert json.loads((work / "a.sarif").read_text())["version"] == "2.1.0"
    assert (work / "b.xml").read_text().startswith("<testsuites>")
    assert json.loads((work / "c.json").read_text())["schema_version"]


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (("--output", "sarif"), "is not FORMAT=FILE"),
        (("--output", "pdf=a.pdf"), "'pdf' is not one of"),
        (("--output", "full=-"), "--output-format"),
        (("--output", "sarif=a", "--output", "json=a"), "a: would hold two results"),
        (("--output", "sarif=no/such/a.sarif"), "no/such"),
    ],
)
def test_an_output_that_cannot_be_is_refused_first(
    work: Path, outputs: tuple[str, ...], told: str
) -> None:
    done = run("check", "train.py", *outputs, cwd=work)
    assert done.returncode == 2 and told in done.stderr and not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert [file.name for file in work.iterdir()] == ["train.py"]
