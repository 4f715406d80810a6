"""Rules against formats, pair by pair: what a rule finds in the recipe of its own example it finds
in the file of every framework that has a place for it, in its line, and mends it there.

Nothing here names a rule: the pairs are made of the examples. A test run takes a sample;
``nox -s set_ups`` takes all.
"""

from __future__ import annotations

import functools
import os
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.version import Version

import lora_doctor
from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.rule import Example, Rule
from lora_doctor.errors import InputError
from lora_doctor.prescription.write_fix import Plan
from lora_doctor.recipe.edit import Edit
from lora_doctor.recipe.files.read_write import edited_files, holds_edit, read_recipe
from lora_doctor.reports._records import records
from lora_doctor.sandbox.worker import Worker
from tools.rule_examples import occurs_here

if Version(metadata.version("transformers")) < Version("4.46"):
    pytest.skip("no release of these frameworks runs on this transformers", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
ALL = bool(os.environ.get("LORA_DOCTOR_SET_UPS"))
#: A set-up of each framework in which only the model is open.
BASES = {
    "llamafactory": """\
model_name_or_path: MODEL
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
dataset: mine
template: default
output_dir: out
""",
    "axolotl": """\
base_model: MODEL
adapter: lora
lora_r: 8
lora_alpha: 16
datasets:
  - path: rows.jsonl
    type: alpaca
sequence_len: 512
micro_batch_size: 1
output_dir: out
""",
    "trl": "model_name_or_path: MODEL\ndataset_name: mine\nuse_peft: true\noutput_dir: out\n",
    "ms_swift": "model: MODEL\ntuner_type: lora\ndataset: [rows.jsonl]\noutput_dir: out\n",
}
#: One pair of each framework, each with another kind of mistake.
SAMPLE = ("LD201-llamafactory", "LD213-axolotl", "LD510-trl", "LD404-ms_swift")

#: Where a framework makes no mistake of it.
NOT_THERE = {
    "LD203-llamafactory": "it puts no adapters into a tower unless told to",
    "LD584-llamafactory": "it makes images smaller by itself",
}


def _text(example: Example, base: str, path: Path) -> str | None:
    """The set-up with the recipe of the example; ``None`` where it has no place for a key."""
    model = example.model if example.model.startswith("arch:") else str(ROOT / example.model)
    data = base.replace("MODEL", model).encode()
    edits = [Edit(key, value) for key, value in example.recipe.items()]
    if not all(holds_edit(path, {path: data}, edit) for edit in edits):
        return None
    try:
        edited = edited_files(path, {path: data}, edits)
    except InputError:  # the framework makes something else of it
        return None
    return edited[path].text if path in edited else data.decode()


@functools.cache
def _pairs(sample: bool) -> list[SimpleNamespace]:
    """The first example of each rule that a framework's file can hold; ``sample``: of few rules."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for rule in find_rules():
            if sample and not any(one.startswith(rule.code) for one in SAMPLE):
                continue
            examples = [one for one in rule.examples if one.kind == "broken" and _is_file(one)]
            for name, base in BASES.items():
                path = Path(folder, f"{name}.yaml")
                path.write_text(base)
                held = ((one, _text(one, base, path)) for one in examples)
                pair = next(((one, text) for one, text in held if text is not None), None)
                if pair is not None:
                    found.append(SimpleNamespace(rule=rule, example=pair[0], text=pair[1],
                                                 id=f"{rule.code}-{name}"))  # fmt: skip
    return found


def _is_file(example: Example) -> bool:
    """Whether it is a recipe on a model that a file can name, and leaves no targets to propose:
    what a framework takes then is another set-up."""
    named = example.model.startswith("arch:") or (ROOT / example.model / "config.json").is_file()
    alone = not (example.script or example.installed or example.loaded or example.data)
    whole = "target_modules" in example.recipe or example.depth == "static"
    return named and alone and whole and bool(example.recipe) and occurs_here(example)


def _chosen() -> list[object]:
    return [
        pytest.param(pair.rule, pair.example, pair.text, id=pair.id)
        for pair in _pairs(sample=not ALL)
        if pair.id not in NOT_THERE and (ALL or pair.id in SAMPLE)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "example", "text"), _chosen())
def test_a_rule_finds_its_example_in_a_framework_s_file(
    rule: type[Rule],
    example: Example,
    text: str,
    tmp_path: Path,
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "set_up.yaml"
    path.write_text(text)
    written = read_recipe(path).places
    (tmp_path / "out").mkdir()
    plan = Plan.make(path, str(tmp_path / "out"), True)
    diagnosis = lora_doctor.fix(
        path, unsafe_fixes=True, depth=example.depth, worker=worker, budgets=example.budgets or None
    )
    found = [record for record in records(diagnosis) if record.rule == rule.code]
    assert found, [(record.rule, record.message) for record in records(diagnosis)]
    places = {written[key].line for key in example.recipe if key in written}
    assert {one.line for one in found} & {None, 1, *places}, "in the line of the mistake"
    edits = [e for item in diagnosis.applied if item.rule == rule.code for e in item.fix.edits]
    if not edits or not all(holds_edit(path, text.encode(), edit) for edit in edits):
        return  # nothing that the file has a place for
    assert rule.code not in {finding.rule for finding in diagnosis.remaining or ()}
    plan.write(plan.with_diff(diagnosis))
    assert path.read_text() != text
    again = lora_doctor.check(path, depth=rule.depth, worker=worker)
    assert rule.code not in {finding.rule for finding in again.findings}


@pytest.mark.skipif(not ALL, reason="holds every example against every format: nox -s set_ups")
@pytest.mark.parametrize("framework", BASES)
def test_many_rules_stand_against_every_framework(framework: str) -> None:
    """The pairs are not few for want of a place in some format."""
    ids = {pair.id for pair in _pairs(sample=False) if pair.id.endswith(framework)}
    assert len(ids) >= 25 and ids >= {one for one in SAMPLE if one.endswith(framework)}
