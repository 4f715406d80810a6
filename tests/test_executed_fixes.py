"""Each fix says whether it was executed; only one that trained is called safe, and what is shown is
what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.api.opening import open_case
from lora_doctor.cli.commands import cli
from lora_doctor.cli.next_command import next_command
from lora_doctor.engine import try_fixes
from lora_doctor.engine.diagnose import diagnose
from lora_doctor.engine.registry import RuleSelection, find_rules
from lora_doctor.prescription.write_fix import Plan
from lora_doctor.proposal.targets import without_lookahead
from lora_doctor.recipe.files.read_write import read_recipe
from lora_doctor.results.fix import Fix
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.installed.environment import known_architectures
from tests import models

pytest.importorskip("torch")

TINY_LLAMA = f"{models.__name__}:tiny_llama"


def of_rule(diagnosis: lora_doctor.Diagnosis, code: str) -> list[Fix]:
    return [fix for one in diagnosis.findings if one.rule == code for fix in one.fixes]


@pytest.mark.parametrize(
    ("model", "written", "code"),
    [
        ("arch:llama", "# mine\nlora_target_modules: [q_proj, v_porj]\n", "LD202"),
        ("arch:phi3", "target_modules: [q_proj, o_proj]  # as in Llama\nr: 8\n", "LD202"),
        (
            "arch:llama",
            "model_class: AutoModel\ntask_type: CAUSAL_LM\ntarget_modules: [q_proj]\n",
            "LD101",
        ),
        ("arch:gpt2", "target_modules: [q_proj, v_proj]\n", "LD201"),
        ("arch:llama", "target_modules: [q_proj]\nmodules_to_save: [score]\n", "LD209"),
    ],
    ids=["mistyped", "other-names", "no-head", "nothing-matches", "saves-nothing"],
)
def test_a_safe_fix_was_executed_and_what_it_writes_trains(
    model: str, written: str, code: str, tmp_path: Path, worker: Worker
) -> None:
    """Broken, found with a fix that is labelled executed, written into the user's file, trained."""
    if model.removeprefix("arch:") not in (known_architectures() or ()):
        pytest.skip(f"this transformers has no {model}")
    file = tmp_path / "recipe.yaml"
    file.write_text(written)
    shown = lora_doctor.check(model, file, worker=worker)
    safe = [fix for fix in of_rule(shown, code) if fix.safety == "safe"]
    assert safe and safe[0].executed.outcome == "passed" and safe[0].executed.depth == "tiny"
    assert "checks passed" in safe[0].executed.detail

    plan = Plan.make(str(file), str(tmp_path), write=True)
    fixed = plan.with_diff(lora_doctor.fix(model, file, worker=worker))
    assert [(item.rule, item.fix.edits) for item in fixed.applied] == [(code, safe[0].edits)]
    assert file in plan.write(fixed)
    again = lora_doctor.check(model, file, worker=worker)
    assert again.verdict == "healthy", [one.message for one in again.findings]


RULE = '''
from lora_doctor.rule_api import *

class Odd(Rule):
    """Odd.

    ## What happens
    ## Why
    ## Versions
    ## Fix
    ## Links
    """

    code = "ZZ001"
    name = "odd"
    summary = "Odd."
    depth = "meta"
    examples = ()

    def check(self, case):
        if {when}:
            yield self.finding(
                "warning", "Odd.", location=Location("recipe", "target_modules"),
                evidence=(Measurement("r", case.recipe.get("r"), "recipe"),),
                proof=Proof("measured", "read"),
                fixes=(Fix("Do it.", "safe", ({edit},)),),
            )
'''
ALWAYS = "True"
AS_WRITTEN = 'case.recipe.get("target_modules") == ["q_proj", "v_proj"]'


def with_rule(folder: Path, edit: str, when: str = AS_WRITTEN) -> list[Path]:
    """A rule of one's own with one fix that it calls safe."""
    folder.mkdir(exist_ok=True)
    (folder / "zz001_odd.py").write_text(RULE.replace("{edit}", edit).replace("{when}", when))
    return [folder]


@pytest.mark.parametrize(
    ("edit", "when", "why"),
    [
        ('Edit("target_modules", ["nope"])', AS_WRITTEN, "failed"),
        ('Edit("r", 4)', ALWAYS, "the finding is still there"),
        ('Edit("bias", "all of them")', 'case.recipe.get("bias") is None', "attaches failed"),
    ],
    ids=["breaks-training", "leaves-the-finding", "refused-by-peft"],
)
def test_a_fix_that_does_not_help_is_not_called_safe_and_not_applied(
    edit: str, when: str, why: str, tmp_path: Path, worker: Worker
) -> None:
    """Whatever the rule says of it."""
    recipe = {"target_modules": ["q_proj", "v_proj"]}
    rules = with_rule(tmp_path / "rules", edit, when)
    fixed = lora_doctor.fix(TINY_LLAMA, recipe, rules=rules, worker=worker)
    (fix,) = of_rule(fixed, "ZZ001")
    assert fix.safety == "unproven" and fix.executed.outcome == "failed"
    assert why in fix.executed.detail
    assert not fixed.applied and fixed.fixed_recipe is None
    assert "safe" not in str(fixed).partition("ZZ001")[2].partition("Training contract")[0]


def test_a_fix_that_changes_nothing_is_not_offered(tmp_path: Path, worker: Worker) -> None:
    rules = with_rule(tmp_path / "rules", 'Edit("target_modules", ["q_proj", "v_proj"])')
    found = lora_doctor.check(
        TINY_LLAMA, {"target_modules": ["q_proj", "v_proj"]}, rules=rules, worker=worker
    )
    assert [one.rule for one in found.findings] == ["ZZ001"] and not of_rule(found, "ZZ001")


def test_a_patch_that_does_not_help_is_not_offered_as_safe(worker: Worker) -> None:
    """PEFT asks for the embeddings, and the class raises another error than the patch takes."""
    try:
        models.embeddings_method_out_of_date()
    except AttributeError:
        pytest.skip("this transformers refuses such a class by itself")
    model = f"{models.__name__}:embeddings_method_out_of_date"
    fixed = lora_doctor.fix(model, {"target_modules": ["q_proj", "v_proj"]}, worker=worker)
    if not of_rule(fixed, "LD105"):
        pytest.skip("this PEFT does not ask for the embeddings")
    assert "safe" not in {fix.safety for fix in of_rule(fixed, "LD105")}
    assert not fixed.applied


@pytest.mark.parametrize("depth", ["static", "meta"])
def test_what_runs_nothing_says_so(depth: Any, worker: Worker, tmp_path: Path) -> None:
    """And `fix` at such a depth applies nothing unasked."""
    rules = with_rule(tmp_path / "rules", 'Edit("target_modules", ["q_proj"])')
    recipe = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["score"]}
    found = lora_doctor.fix("arch:llama", recipe, depth=depth, rules=rules, worker=worker)
    fixes = [fix for one in found.findings for fix in one.fixes if fix.safety != "manual"]
    assert {fix.safety for fix in fixes} <= {"unproven", "unsafe"} and not found.applied
    assert {fix.executed.detail for fix in fixes} <= {f"depth {depth}"}
    assert depth == "static" or fixes
    text = str(found)
    assert depth == "static" or f"not executed: depth {depth}" in text


def test_a_dry_run_runs_no_fix(worker: Worker) -> None:
    """Its evidence is what the user's own command did; no other recipe has any."""
    recipe, rules = {"target_modules": ["q_proj", "v_porj"]}, find_rules()
    with open_case("arch:llama", recipe, {"worker": worker}) as case:
        case.store.keep("dry_run", object())
        found = diagnose(case, rules, RuleSelection(("LD202",)))
    (fix,) = of_rule(found, "LD202")
    assert fix.safety == "unproven" and "dry run" in fix.executed.detail


def test_check_does_not_wait_for_every_fix_and_fix_does(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be applied is run however long it takes."""
    monkeypatch.setattr(try_fixes, "MOST_SECONDS", 0.0)
    recipe = {"target_modules": ["q_proj", "v_porj"]}
    (fix,) = of_rule(lora_doctor.check("arch:llama", recipe, worker=worker), "LD202")
    assert fix.safety == "unproven" and "lora-doctor fix runs" in fix.executed.detail
    fixed = lora_doctor.fix("arch:llama", recipe, worker=worker)
    assert [item.fix.safety for item in fixed.applied] == ["safe"]


def test_a_fix_of_an_anchor_hands_its_value_on(tmp_path: Path, worker: Worker) -> None:
    """Another entry refers to the one that changes, and keeps its value."""
    file = tmp_path / "recipe.yaml"
    file.write_text("r: &rank 8\nlora_alpha: *rank\ntarget_modules: [q_proj, v_proj]\n")
    rules = with_rule(tmp_path / "rules", 'Edit("r", 4)', 'case.recipe.get("r") == 8')
    fixed = lora_doctor.fix(TINY_LLAMA, file, rules=rules, worker=worker)
    (fix,) = of_rule(fixed, "ZZ001")
    assert fix.safety == "safe" and fix.executed.outcome == "passed"
    assert fixed.fixed_recipe is not None
    assert (fixed.fixed_recipe.get("r"), fixed.fixed_recipe.get("lora_alpha")) == (4, 8)


def test_what_the_file_has_no_place_for_is_told(tmp_path: Path, worker: Worker) -> None:
    """An adapter_config.json does not say which class is loaded; the prescription does."""
    file = tmp_path / "adapter_config.json"
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "r": 8}
    file.write_text(json.dumps(values))
    recipe = read_recipe(file).override({"model_class": "AutoModel"}, "option")
    found = lora_doctor.check("arch:llama", recipe, worker=worker)
    (fix,) = [fix for fix in of_rule(found, "LD101") if fix.safety == "safe"]
    assert fix.executed.outcome == "passed"
    assert "model_class: in the prescription, adapter_config.json has" in fix.executed.detail


def test_fix_takes_the_real_weights_as_check_does(tmp_path: Path, worker: Worker) -> None:
    """And what is to be typed next is about them, too."""
    model, file = tmp_path / "model", tmp_path / "recipe.yaml"
    models.tiny_llama().save_pretrained(model)
    file.write_text("target_modules: [q_proj, v_porj]\n")
    words = [str(model), "--recipe", str(file), "--depth", "full"]
    asked = cli.commands["fix"].make_context("fix", list(words)).params
    assert asked["depth"] == "full"
    fixed = lora_doctor.fix(str(model), file, depth="full", worker=worker)
    assert [item.fix.executed.depth for item in fixed.applied] == ["full"]
    assert fixed.after is not None and fixed.after.depth == "full"
    assert next_command(fixed, "fix", asked, None).endswith("--depth full --apply")


# --- what a fix may not do ---


@pytest.mark.parametrize(("r", "lora_alpha"), [(1, 4), (1, 2), (4, 8), (2, 1)])
def test_a_scaling_that_is_too_small_is_never_lowered(
    r: int, lora_alpha: int, worker: Worker
) -> None:
    """These weights are so large that 2, the usual scaling, is too small for them as well."""
    recipe = {"target_modules": ["proj"], "r": r, "lora_alpha": lora_alpha, "lora_dropout": 0.0}
    found = lora_doctor.check(
        f"{models.__name__}:layer_of_large_numbers", recipe, select=["LD404"], worker=worker
    )
    fixes = of_rule(found, "LD404")
    assert fixes and {fix.safety for fix in fixes} == {"manual"}, found
    assert "larger learning rate" in fixes[0].title


def test_an_adapter_of_the_class_without_a_head_is_not_offered(worker: Worker) -> None:
    """On the class with the head it would load as nothing; the head is what is offered."""
    recipe = {"model_class": "AutoModel", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    for depth in ("meta", "tiny"):
        found = lora_doctor.check("arch:llama", recipe, depth=depth, worker=worker)
        edits = [edit for fix in of_rule(found, "LD101") for edit in fix.edits]
        assert [edit.key for edit in edits] == ["model_class"]


# --- a fix does not hide another finding ---


@pytest.mark.slow
def test_vision_adapters_are_still_found_when_the_dead_ones_are_left_out(worker: Worker) -> None:
    """LLaVA takes the features before its last vision layer; the others are not meant either."""
    fixed = lora_doctor.fix("arch:llava", {"target_modules": ["q_proj", "v_proj"]}, worker=worker)
    assert {item.rule for item in fixed.applied} == {"LD206"}
    assert fixed.fixed_recipe is not None
    assert "LD203" in {one.rule for one in fixed.remaining or ()}
    again = lora_doctor.check("arch:llava", fixed.fixed_recipe, depth="meta", worker=worker)
    assert "LD203" in {one.rule for one in again.findings}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "targets", "rewritten", "code"),
    [
        ("llava", ["q_proj", "v_proj"], r"(?:.*\.)?(?:q_proj|v_proj)(?!\.vision_tower)", "LD203"),
        ("llava", ["q_proj", "v_proj"], r"(.*vision_tower.*|.*)\.(?:q_proj|v_proj)", "LD203"),
        ("recurrent_gemma", ["q_proj", "v_proj"], r"(?:.*\.)?(?:q_proj|v_proj)", "LD208"),
    ],
)
def test_what_a_fix_writes_is_not_taken_for_what_the_user_meant(
    model: str, targets: list[str], rewritten: str, code: str, tmp_path: Path, worker: Worker
) -> None:
    """The same layers, written otherwise: the findings about them stay."""
    if model not in (known_architectures() or ()):
        pytest.skip(f"this transformers has no {model}")
    rules = with_rule(tmp_path / "rules", f'Edit("target_modules", {rewritten!r})')
    fixed = lora_doctor.fix(
        f"arch:{model}", {"target_modules": targets}, rules=rules, ignore=["LD206"], worker=worker
    )
    assert code in {one.rule for one in fixed.findings}
    assert [item.rule for item in fixed.applied] == ["ZZ001"]
    assert code in {one.rule for one in fixed.remaining or ()}


@pytest.mark.parametrize(
    ("expression", "left"),
    [
        (r"(?!model\.vision_tower\.x$)(?:.*\.)?(?:q|v)", r"(?:.*\.)?(?:q|v)"),
        (r".*(?<!vision\.)(q_proj)", r".*(q_proj)"),
        (r"(?!a(b|c)\)d)e", "e"),
        (r".*vision.*\.(q_proj|v_proj)", r".*vision.*\.(q_proj|v_proj)"),
        (r"a\(?!b", r"a\(?!b"),
    ],
)
def test_what_an_expression_keeps_out(expression: str, left: str) -> None:
    assert without_lookahead(expression) == left
