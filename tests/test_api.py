"""The Python API as its users meet it: completion, misspelt options, printed results, errors."""

from __future__ import annotations

import ast
import html
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import lora_doctor
from lora_doctor import errors, rule_api
from lora_doctor.api import options
from lora_doctor.engine.case import Case
from lora_doctor.engine.settings import Settings
from tests import diagnoses
from tests.cli import ROOT
from tests.cli import lora_doctor as command
from tools.json_schema import field_docs

FUNCTIONS = (lora_doctor.check, lora_doctor.fix, lora_doctor.verify)
HOSTILE = "</iframe><script>alert(1)</script>\"'><style>*{display:none}</style>\x1b[2J&quot;"


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_an_editor_sees_every_option(function: Callable[..., Any]) -> None:
    """`help`, completion in a notebook and documentation tools read the signature."""
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:2] == ["model", "recipe"]
    assert not [one for one in parameters.values() if one.kind is one.VAR_KEYWORD]
    taken = options.CaseOptions if function is lora_doctor.verify else options.CheckOptions
    for name in get_type_hints(taken):
        assert parameters[name].default == options.DEFAULTS[name], name  # type: ignore[literal-required]
    hints = get_type_hints(function)
    assert hints.keys() == parameters.keys() | {"return"}
    assert "'static', 'meta', 'tiny', 'full'" in str(hints["depth"])


def test_each_option_has_one_default_and_is_documented() -> None:
    assert options.DEFAULTS.keys() == get_type_hints(options.CheckOptions).keys()
    documented = inspect.getdoc(lora_doctor.check) or ""
    for name in options.DEFAULTS:
        assert f"\n    {name}" in documented or f", {name}:" in documented, name
    settings = Settings()
    for name in ("depth", "device", "steps", "memory"):
        assert getattr(settings, name) == options.DEFAULTS[name]  # type: ignore[literal-required]


@pytest.mark.parametrize(
    ("function", "misspelt", "says"),
    [
        ("fix", "targt_modules", "fix(model, {'target_modules': ...})"),
        ("check", "lora_alpha", "check(model, {'lora_alpha': ...})"),
        ("check", "torch_dtype", "check(model, {'torch_dtype': ...})"),
        ("check", "selct", "did you mean 'select'?"),
        ("fix", "unsafe_fix", "did you mean 'unsafe_fixes'?"),
        ("verify", "batch", "did you mean 'batches'?"),
        ("verify", "select", "help(lora_doctor.verify)"),
        ("verify", "optimizer", "help(lora_doctor.verify)"),
        ("check", "qqqqqq", "help(lora_doctor.check)"),
    ],
)
def test_a_misspelt_option_names_the_function_and_what_was_meant(
    function: str, misspelt: str, says: str
) -> None:
    """A model is never loaded for it, and the error is about the line that the user wrote."""
    with pytest.raises(TypeError) as caught:
        getattr(lora_doctor, function)("arch:gpt2", **{misspelt: ["q_proj"]})
    message = str(caught.value)
    assert message.startswith(f"lora_doctor.{function}() got an unexpected keyword argument")
    assert repr(misspelt) in message and says in message and "\n" not in message


@pytest.mark.slow
def test_a_type_checker_finds_a_misspelt_option(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "train.py"
    script.write_text(
        "import lora_doctor\n"
        "lora_doctor.check('arch:gpt2', {'r': 8}, depth='meta', select=['LD2'])\n"
        "lora_doctor.check('arch:gpt2', selct=['LD2'])\n"
        "lora_doctor.fix('arch:gpt2', depth='deep')\n"
        "print(lora_doctor.fix('arch:gpt2', unsafe_fixes=True).verdict)\n"
        "print(lora_doctor.verify('arch:gpt2', steps=5).outcome)\n"
        "print(lora_doctor.verify('arch:gpt2').verdict)\n",
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if "train.py" in line and " error: " in line]
    assert [line.split(":")[1] for line in found] == ["3", "4", "7"], done.stdout + done.stderr
    assert 'Unexpected keyword argument "selct" for "check"' in found[0]
    assert '"depth"' in found[1] and '"verdict"' in found[2]


# --- errors --------------------------------------------------------------------------------------


def test_every_error_is_importable_and_in_the_one_tree() -> None:
    """`except lora_doctor.PatchError` without knowing where it is defined."""
    raised = {
        name for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, Exception)
    }  # fmt: skip
    for name in raised:
        assert getattr(lora_doctor, name) is getattr(errors, name)
        assert name in lora_doctor.__all__ and name in (errors.__doc__ or "")
    elsewhere = [
        f"{path.name}: {node.name}"
        for path in (ROOT / "lora_doctor").rglob("*.py")
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        and {ast.unparse(base).rpartition(".")[2] for base in node.bases} & raised
    ]
    assert elsewhere == []


def test_all_public_names_are_there_for_both_readers() -> None:
    """What `import lora_doctor` finds is what a type checker is told."""
    for name in lora_doctor.__all__:
        assert getattr(lora_doctor, name) is not None
        assert name in dir(lora_doctor)
    tree = ast.parse(Path(lora_doctor.__file__ or "").read_text("utf-8"))
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lora_doctor")
        for alias in node.names
    }
    assert typed == set(lora_doctor.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        lora_doctor.nope  # noqa: B018


# --- results that are looked at ------------------------------------------------------------------


def test_print_shows_the_report_and_the_prompt_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    diagnosis = diagnoses.phi3()
    text = str(diagnosis)
    assert "LD202" in text and text.splitlines()[-1].startswith("Next: lora-doctor fix arch:phi3")
    assert "\x1b" not in text and max(map(len, text.splitlines()[:-1])) <= 120
    assert repr(diagnosis) == "<Diagnosis of arch:phi3: findings (LD202), depth tiny>"
    assert repr(diagnoses.healthy()) == "<Diagnosis of arch:llama: healthy, depth tiny>"


def test_print_of_a_verification_names_its_checks_with_numbers() -> None:
    healthy, broken = diagnoses.healthy().before, diagnoses.wrapper_fails().before
    assert healthy is not None and broken is not None
    assert "training contract passed" in str(healthy) and "loss-falls" in str(healthy)
    assert "training contract failed" in str(broken) and "(expected " in str(broken)
    assert len(str(healthy).splitlines()) == 1 + len(healthy.checks)


def test_print_does_not_fail_where_standard_output_has_few_characters() -> None:
    code = "from tests import diagnoses; print(diagnoses.phi3())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True,
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert b"LD202" in done.stdout


def test_parts_of_a_diagnosis_print_in_a_line() -> None:
    """In a notebook people loop over findings and look at what `verify` gave."""
    diagnosis = diagnoses.phi3()
    finding = diagnosis.findings[0]
    place, safety = finding.location, finding.fixes[0].safety
    assert str(finding) == f"LD202 {finding.severity} at {place}: {finding.message}"
    assert str(finding.fixes[0]) == f"{safety}: {finding.fixes[0].title}"
    assert "target_modules: [" in str(diagnosis.fixed_recipe)
    run = diagnoses.healthy().before
    assert run is not None and len(repr(run)) < 120 and " checks passed), depth tiny>" in repr(run)
    assert run._repr_html_().startswith("<pre>training contract passed")
    hostile = diagnoses.hostile(HOSTILE)
    assert hostile.before is not None and "<script>" not in hostile.before._repr_html_()
    assert all("\x1b" not in str(one) for one in (hostile.findings[0], hostile.before))


class Cell(HTMLParser):
    """The tags that a notebook would put into its own page, and the framed page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.framed = ""
        self.sandbox: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        if tag == "iframe":
            self.framed = found["srcdoc"] or ""
            self.sandbox.append(found["sandbox"])


@pytest.mark.parametrize(
    "made", [diagnoses.phi3(), diagnoses.hostile(HOSTILE)], ids=["phi3", "hostile"]
)
def test_a_notebook_shows_the_page_in_a_frame_that_nothing_leaves(
    made: lora_doctor.Diagnosis,
) -> None:
    """What a model repository calls its modules must neither run in a notebook nor restyle it."""
    shown = made._repr_html_()
    cell = Cell()
    cell.feed(shown)
    assert cell.tags == ["div", "iframe"]
    assert cell.sandbox in ([None], [""])  # no permission at all
    page = cell.framed
    assert page.lstrip().startswith("<!DOCTYPE html>") and "</html>" in page
    assert html.escape(page, quote=True) in shown
    assert "<script>alert" not in page
    assert "\x1b" not in repr(made) and "\n" not in repr(made)


# --- the module that rules import from -----------------------------------------------------------


def test_whatever_a_case_hands_out_has_a_name_that_a_rule_can_import() -> None:
    """A rule of somebody's own is written under mypy --strict as ours are."""
    public = {id(getattr(rule_api, name)) for name in rule_api.__all__}
    known = {**vars(rule_api), "Plan": rule_api.MemoryPlan}
    seen = set()
    for name, found in inspect.getmembers(Case):
        getter = getattr(found, "fget", None) or getattr(found, "_gather", None)
        if name.startswith("_") or getter is None:
            continue
        seen.add(name)
        for kind in set(re.findall(r"[A-Z]\w+", getter.__annotations__["return"])) - {"Sequence"}:
            assert id(known.get(kind) or getattr(rule_api, kind)) in public, name
    assert seen >= {"recipe", "static", "script", "structure", "optimizer", "tiny", "verification"}


RULES = sorted((ROOT / "rules").glob("*.py"))


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_a_rule_imports_the_public_module(path: Path) -> None:
    """Whichever rule a contributor copies: what it imports is public, and by one door.

    A reader in `static` that no other rule has a use for may be imported where it stands.
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert not [one.name for one in node.names if one.name.startswith("lora_doctor")]
        if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("lora_doctor"):
            continue
        module = str(node.module)
        if module == "lora_doctor.rule_api" or module.startswith("lora_doctor.rules._"):
            continue
        if module == "lora_doctor.rules" and all(one.name.startswith("_") for one in node.names):
            continue
        assert module.startswith("lora_doctor.static."), f"{path.name}: {module}"
        again = {one.name for one in node.names} & set(rule_api.__all__)
        assert not again, f"{path.name}: import {sorted(again)} from lora_doctor.rule_api"


def test_the_public_module_tells_what_each_of_its_names_is_for() -> None:
    assert len(RULES) > 50
    described = rule_api.__doc__ or ""
    assert [name for name in rule_api.__all__ if f"``{name}``" not in described] == []


@pytest.mark.parametrize("module", [lora_doctor, rule_api], ids=lambda module: module.__name__)
def test_public_data_are_documented_at_the_field(module: Any) -> None:
    """One place to read what a field is; the JSON schema has its descriptions from there, too."""
    public = [getattr(module, name) for name in module.__all__]
    classes = [one for one in public if isinstance(one, type) and is_dataclass(one)]
    assert len(classes) > 3
    for one in classes:
        assert field_docs(one).keys() >= {item.name for item in fields(one)}


OWN_RULE = '''
from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case, Edit, Finding, Fix, Location, Measurement, Proof, Rule, Structure, quoted,
)


class RankIsOurs(Rule):
    """The house rank is 8."""

    code = "ACME1"
    name = "house-rank"
    summary = "Another rank than the house's."
    depth = "meta"

    def check(self, case: Case) -> Iterator[Finding]:
        structure: Structure = case.structure
        if case.recipe.get("r") != 8:
            yield self.finding(
                "warning",
                f"r is not 8 on {quoted([structure.model_class])}.",
                location=Location("recipe", "r"),
                evidence=(Measurement("r", case.recipe.get("r"), "recipe"),),
                proof=Proof("inferred", "read in the recipe"),
                fixes=(Fix("Train at r=8.", "safe", edits=(Edit("r", 8),)),),
            )
'''


def test_a_companys_own_rule_finds_and_fixes(tmp_path: Path) -> None:
    (tmp_path / "acme.py").write_text(OWN_RULE, "utf-8")
    arguments = ("arch:gpt2", "--target-modules", "c_attn", "--r", "4", "--rules", tmp_path,
                 "--select", "ACME")  # fmt: skip
    found = command("check", *arguments, "--depth", "meta", "--output-format", "concise")
    assert found.code == 1 and "ACME1 r is not 8 on GPT2LMHeadModel." in found.out, found
    fixed = command("fix", *arguments, "--diff")
    assert "+r: 8" in fixed.out, fixed


# --- what is given alone, or cannot be -----------------------------------------------------------

LONE_RULE = '''\
from lora_doctor.rule_api import Location, Measurement, Proof, Rule


class Own(Rule):
    """One of mine."""

    code, name, summary, depth = "ZZ001", "own", "One of mine.", "static"

    def check(self, case):
        yield self.finding(
            "info", "m", location=Location("recipe", "r"),
            evidence=(Measurement("a", 1, "b"),), proof=Proof("measured", "x"),
        )
'''


@pytest.mark.parametrize("wrap", [str, Path], ids=["text", "path"])
def test_one_code_and_one_folder_need_no_list(tmp_path: Path, wrap: Callable[[str], Any]) -> None:
    """A text is no sequence of letters, and a path is no error."""
    folder = tmp_path / "rules"
    folder.mkdir()
    folder.joinpath("own.py").write_text(LONE_RULE)
    script = tmp_path / "train.py"
    script.write_text("from peft import LoraConfig\nconfig = LoraConfig(r=8)\n")
    one = lora_doctor.check(script, rules=wrap(str(folder)), select="ZZ")
    several = lora_doctor.check(script, rules=[folder], select=["ZZ"])
    assert [found.rule for found in one.findings] == ["ZZ001"]
    assert one.findings == several.findings and one.passed == several.passed
    without = lora_doctor.check(script, rules=folder, ignore="ZZ001")
    assert "ZZ001" not in {found.rule for found in without.findings}
    with pytest.raises(errors.InputError, match="'QQ9'"):
        lora_doctor.check(script, select="QQ9")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"steps": -5}, "steps -5: expected an integer"),
        ({"steps": 0}, "steps 0: expected an integer"),
        ({"steps": True}, "steps True: expected an integer"),
        ({"steps": 2.5}, "steps 2.5: expected an integer"),
        ({"device": "banana"}, "device 'banana': expected auto, cpu, cuda or mps"),
        ({"device": None}, "device None: expected"),
        ({"limits": 5}, "limits: is a lora_doctor.Limits, not int"),
        ({"adapter": 4}, "adapter: is a folder or a hub id, not int"),
        ({"data": 3}, "data: is a file, not int"),
        ({"progress": "bar"}, "progress: expected a function"),
        ({"batches": 7}, "batches: expected a list of mappings"),
        ({"batches": ["input_ids"]}, "batches: expected a list of mappings"),
    ],
    ids=str,
)
def test_values_of_options_are_checked_at_every_depth(option: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.InputError, match=says):
        lora_doctor.check("arch:llama", depth="static", **option)


def test_a_diagnosis_prints_beside_a_broken_report_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another installed package breaks is no reason why a result cannot be shown."""
    from lora_doctor.results import formats

    made = diagnoses.phi3()
    text, cell = str(made), made._repr_html_()

    def broken(*_: object) -> None:
        raise errors.InputError("report format theirs: cannot be imported")

    monkeypatch.setattr(formats, "find_modules", broken)
    with pytest.raises(errors.InputError):
        formats.find_formats()
    assert str(made) == text and made._repr_html_() == cell
