"""The adapter calls of a program, made again: refused, altered, left out, not loadable."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from lora_doctor.evidence.adapter_steps import gather
from lora_doctor.recipe.program.adapter_steps import AdapterStep, adapter_steps
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.recipe import Recipe

ADAPTERS = Path(__file__).parent / "folders" / "adapters"
BASE = Path(__file__).parent / "folders" / "bfloat16_weights"
LOADS = """
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained("{base}")
"""
TWO = """
model = PeftModel.from_pretrained(base, "{one}", adapter_name="one")
model.load_adapter("{two}", adapter_name="two")
"""
BOTH = 'model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "both", combination_type="{how}")\n'
SAVED = 'model.save_pretrained("out")\n'


def steps_of(text: str, folder: Path, **names: Any) -> list[AdapterStep]:
    file = folder / "program.py"
    paths = {name: ADAPTERS / value for name, value in names.items() if name in ("one", "two")}
    file.write_text((LOADS + text).format(base=BASE, **{**names, **paths}))
    return adapter_steps(read_setup(file, None, ()))


def faults_of(steps: list[AdapterStep]) -> list[dict[str, Any]]:
    source = {"kind": "folder", "name": str(BASE), "folder": str(BASE),
              "trust_remote_code": False}  # fmt: skip
    return list(
        gather(source, Recipe({}, {}, True).to_json(), [step.to_json() for step in steps])["faults"]
    )


#: What is done with two adapters, which, and what comes of it.
DONE = {
    "other ranks, linear": (BOTH, "plain", "other_rank", "linear", ["refused"]),
    "other ranks, cat": (BOTH + SAVED, "plain", "other_rank", "cat", []),
    "other ranks, svd": (BOTH + SAVED, "plain", "other_rank", "svd", []),
    "equal ranks, linear": (BOTH + SAVED, "plain", "plain", "linear", []),
    "DoRA": (BOTH, "dora", "dora", "cat", ["altered"]),
    "rank patterns": (BOTH + SAVED, "pattern", "pattern", "linear", ["not-loadable"]),
    "rank patterns, merged at once": (
        BOTH + 'model.set_adapter("both")\nmodel = model.merge_and_unload()\n',
        "pattern", "pattern", "linear", []),
    "no such adapter": ('model.set_adapter("three")\n', "plain", "plain", "", ["refused"]),
    "one was never active": ("model.merge_and_unload()\n", "plain", "plain", "", ["left-out"]),
    "both are named": (
        'model.merge_and_unload(adapter_names=["one", "two"])\n', "plain", "plain", "", []),
    "one is named": (
        'model.merge_and_unload(adapter_names=["one"])\n', "plain", "plain", "", []),
    "one is deleted": (
        'model.delete_adapter("two")\nmodel.merge_and_unload()\n', "plain", "plain", "", []),
    "each in its turn": (
        'model.set_adapter("two")\nmodel.merge_and_unload()\n', "plain", "plain", "", []),
    "one is chosen": (
        'model.set_adapter("one")\nmodel.merge_and_unload()\n', "plain", "plain", "", []),
    "saved before": (SAVED + "model.merge_and_unload()\n", "plain", "plain", "", []),
    "part of what is active": (
        'model.base_model.set_adapter(["one", "two"])\n'
        'model.merge_adapter(adapter_names=["two"])\n', "plain", "plain", "", ["left-out"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DONE)
@pytest.mark.skipif(
    Version(version("peft")) < Version("0.16"),
    reason="an older PEFT refuses and drops other things",
)
def test_of_two_saved_adapters(name: str, tmp_path: Path) -> None:
    text, one, two, how, expected = DONE[name]
    faults = faults_of(steps_of(TWO + text, tmp_path, one=one, two=two, how=how))
    assert [fault["kind"] for fault in faults] == expected
    assert name != "DoRA" or (faults[0]["cause"], len(faults[0]["adapters"])) == ("use_dora", 2)


def test_new_adapters(tmp_path: Path) -> None:
    """By configs that the program writes out."""
    text = (
        "model = get_peft_model(base, LoraConfig(r=4, target_modules=['q_proj']), 'one')\n"
        "model.add_adapter('two', LoraConfig(r=8, target_modules=['q_proj']))\n" + BOTH
    )
    assert [one["kind"] for one in faults_of(steps_of(text, tmp_path, how="linear"))] == ["refused"]
    assert not faults_of(steps_of(text, tmp_path, how="cat"))


@pytest.mark.parametrize(
    ("targets", "faults"), [("['q_proj', 'v_proj']", []), ("['q_proj']", ["refused"])]
)
@pytest.mark.skipif(Version(version("peft")) < Version("0.16"), reason="has no such function")
def test_weights_of_another_adapter(targets: str, faults: list[str], tmp_path: Path) -> None:
    """What is swapped in may have no layers that the adapter lacks."""
    text = (
        "from peft.utils.hotswap import hotswap_adapter\n"
        f"model = get_peft_model(base, LoraConfig(r=1, target_modules={targets}))\n"
        'hotswap_adapter(model, "{one}", "default")\n'
    )
    steps = steps_of(text, tmp_path, one="plain")
    assert len(steps) == 2 and [one["kind"] for one in faults_of(steps)] == faults


@pytest.mark.parametrize(
    ("one", "two", "saved", "faults"),
    [
        ("plain", "plain", True, []),
        ("plain", "pattern", False, ["rescaled"]),
        ("plain", "other_rank", False, []),
        ("plain", "other_rank", True, ["not-loadable"]),
        ("other_rank", "plain", True, []),
    ],
)
@pytest.mark.skipif(Version(version("peft")) < Version("0.18"), reason="takes no other ranks")
def test_swapped_is_as_loaded(
    one: str, two: str, saved: bool, faults: list[str], tmp_path: Path
) -> None:
    """The factor of each layer, and the config that is saved, are those of what was swapped in."""
    text = (
        "from peft.utils.hotswap import hotswap_adapter\n"
        'model = PeftModel.from_pretrained(base, "{one}")\n'
        'hotswap_adapter(model, "{two}", "default")\n' + SAVED * saved
    )
    found = faults_of(steps_of(text, tmp_path, one=one, two=two))
    assert [fault["kind"] for fault in found] == faults


@pytest.mark.parametrize("call", ["set_adapter", "save_pretrained"])
@pytest.mark.skipif(Version(version("peft")) < Version("0.16"), reason="an older PEFT")
def test_what_cannot_be_saved(call: str, tmp_path: Path) -> None:
    """A model with adapters of several kinds has no file, and an unknown adapter is refused."""
    mixed = (
        "from peft import LoHaConfig\n"
        "config = LoraConfig(r=4, target_modules=['q_proj'])\n"
        "model = get_peft_model(base, config, 'one', mixed=True)\n"
        "model.add_adapter('two', LoHaConfig(r=4, target_modules=['q_proj']))\n"
        "model.set_adapter(['one', 'two'])\n"
    )
    refused = ["refused"] if call == "save_pretrained" else []
    text = mixed + SAVED * bool(refused)
    assert [one["kind"] for one in faults_of(steps_of(text, tmp_path))] == refused


@pytest.mark.parametrize(
    ("named", "lost"), [("['one', 'two']", "two"), ("['two']", "two"), ("['one']", "")]
)
@pytest.mark.skipif(Version(version("peft")) < Version("0.16"), reason="an older PEFT refuses it")
def test_whole_modules_of_two(named: str, lost: str, tmp_path: Path) -> None:
    """PEFT keeps that of the active adapter, whichever are merged."""
    config = "LoraConfig(r=4, target_modules=['q_proj'], modules_to_save=['lm_head'])"
    text = (
        f"model = get_peft_model(base, {config}, 'one')\nmodel.add_adapter('two', {config})\n"
        f"model.save_pretrained('out')\nmodel.merge_and_unload(adapter_names={named})\n"
    )
    found = [(one["detail"], one["adapters"]) for one in faults_of(steps_of(text, tmp_path))]
    assert found == ([("lm_head", (lost,))] if lost else [])


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (TWO + "model.add_weighted_adapter(names, weights, 'both')\n", 2),
        (TWO + "if merged:\n    model.merge_and_unload()\n", 2),
        (TWO + "try:\n    model.delete_adapter('x')\nexcept ValueError:\n    pass\n", 2),
        ("model = PeftModel.from_pretrained(base, '{one}')\nmodel.merge_and_unload()\n", 0),
        ("model = PeftModel.from_pretrained(base, 'org/name')\nmodel.load_adapter(x, 'y')\n", 0),
    ],
)
def test_as_far_as_the_text_says(text: str, known: int, tmp_path: Path) -> None:
    """What is not known, may not run or may fail ends it; a single adapter is no concern here."""
    assert len(steps_of(text, tmp_path, one="plain", two="plain")) == known
