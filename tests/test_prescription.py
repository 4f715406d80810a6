"""The prescription: what is written is read, what is read is checked, what is applied is undone."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_doctor.errors import InputError
from lora_doctor.prescription.apply import Applied, apply
from lora_doctor.recipe.edit import REMOVE, Edit, Patch
from lora_doctor.recipe.files.prescription import (
    REQUIRED,
    Prescription,
    parse_prescription,
    read_prescription,
    write_prescription,
)

SCHEMA = Path(__file__).parent.parent / "lora_doctor" / "schema" / "prescription-1.json"

FULL = Prescription(
    model="org/model",
    edits=(Edit("task_type", None), Edit("target_modules", ["q_proj"]), Edit("use_dora", REMOVE)),
    recipe={
        "task_type": None, "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
        "dtype": "bfloat16", "attn_implementation": "eager", "load_in_4bit": True,
        "bnb_4bit_compute_dtype": "bfloat16", "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    patches=(Patch("drop_none_arguments"),),
    versions={"peft": "0.15.2"},
)  # fmt: skip
WITHOUT_PATCHES = Prescription("m", FULL.edits, FULL.recipe)


def validate(data: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(data)


def test_what_is_written_is_read_and_fits_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_prescription(path, FULL)
    assert read_prescription(path) == FULL
    validate(json.loads(path.read_text()))
    validate(Prescription("m").to_json())
    assert [item.name for item in tmp_path.iterdir()] == ["p.json"]


def test_what_is_empty_may_be_left_out_of_a_file_written_by_hand() -> None:
    """The file of docs/safety.md; what we write ourselves has every key."""
    page = (SCHEMA.parents[2] / "docs" / "safety.md").read_text(encoding="utf-8")
    block = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert block is not None
    data = json.loads(block[1])
    validate(data)
    assert set(data) < set(FULL.to_json())
    read = parse_prescription(data, "p.json")
    assert (read.edits, read.versions) == ((), {})
    assert read.patches == (Patch("drop_none_arguments"),)
    assert read.recipe["target_modules"] == ["q_proj", "v_proj"]
    assert set(read.to_json()) == set(FULL.to_json())
    assert read.to_json()["patches"] == [{"name": "drop_none_arguments", "parameters": {}}]


def test_a_value_that_json_does_not_have_is_refused(tmp_path: Path) -> None:
    for value in (object(), float("nan")):
        with pytest.raises(InputError, match="cannot be written"):
            write_prescription(tmp_path / "p.json", Prescription("m", recipe={"x": value}))
    with pytest.raises(InputError, match=r"does not exist|cannot be written"):
        write_prescription(tmp_path / "none" / "p.json", FULL)
    assert not list(tmp_path.iterdir())


def changed(**values: Any) -> dict[str, Any]:
    return {**copy.deepcopy(FULL.to_json()), **values}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in FULL.to_json().items() if name != key}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        *((without(key), f"has no '{key}'") for key in REQUIRED),
        ({}, "has no 'schema_version', 'model', 'recipe'; needed here: schema_version, model"),
        ({"schema_version": "9"}, "schema_version '9'"),
        (changed(schema_version="9"), "schema_version '9'"),
        (changed(schema_version=1), "schema_version must be a string"),
        (changed(more=1), "has 'more'"),
        (changed(model=3), "model must be a string"),
        (changed(edits={}), "edits must be a list"),
        (changed(edits=[3]), "edits[0]: is a int"),
        (changed(edits=[{"value": 1}]), "edits[0]: has no 'key'"),
        (changed(edits=[{"key": "r"}]), "neither 'value' nor 'remove'"),
        (changed(edits=[{"key": "r", "value": 0}]), "edits[0]: r must be a whole number"),
        (changed(edits=[{"key": "r", "value": 1, "x": 1}]), "has 'x'"),
        (changed(edits=[{"key": "r", "remove": True, "x": 1}]), "has 'x'"),
        (changed(recipe={"r": "eight"}), "recipe: r must be a whole number"),
        (changed(recipe=[]), "recipe must be a mapping"),
        (changed(patches=[{"parameters": {}}]), "patches[0]: has no 'name'"),
        (changed(patches=[{"name": "x", "parameters": []}]), "parameters must be a mapping"),
        (changed(patches=[{"name": 1, "parameters": {}}]), "name must be a string"),
        (changed(patches=[{"name": "x", "parameters": {}, "y": 1}]), "has 'y'"),
        (changed(versions={"peft": 1}), "versions: each value must be a string"),
    ],
)
def test_what_is_no_prescription_is_one_line(
    tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError) as caught:
        apply(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1, "a": 2}'])
def test_what_is_no_json_object_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"p\.json"):
        apply(path)
    with pytest.raises(InputError, match="no such file"):
        apply(tmp_path / "none.json")


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FULL.to_json(), JUNK)), st.booleans())
def test_any_mapping_is_a_prescription_or_an_input_error(data: dict[str, Any], fill: bool) -> None:
    data = {**(FULL.to_json() if fill else {}), **data}
    try:
        prescription = parse_prescription(data, "p.json")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        validate(data)
        assert isinstance(prescription, Prescription)


def test_a_patch_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_prescription(path, Prescription("m", patches=(Patch("os"),)))
    with pytest.raises(InputError, match="no such patch"):
        apply(path)


def test_without_patches_nothing_heavy_is_imported(tmp_path: Path) -> None:
    write_prescription(tmp_path / "p.json", WITHOUT_PATCHES)
    code = (
        "import sys, lora_doctor.prescription.apply as p\n"
        f"applied = p.apply({str(tmp_path / 'p.json')!r})\n"
        "assert applied.recipe_values['r'] == 4 and applied.training_kwargs()\n"
        "heavy = {'torch', 'transformers', 'peft', 'rich', 'jinja2', 'ruamel.yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SCHEMA.parent.parent.parent)


def test_the_edits_apply_to_a_recipe_of_ones_own() -> None:
    applied = apply(WITHOUT_PATCHES)
    mine = {"r": 64, "task_type": "CAUSAL_LM", "use_dora": True, "target_modules": ["x"]}
    assert applied.edited(mine) == {"r": 64, "task_type": None, "target_modules": ["q_proj"]}
    assert mine["r"] == 64 and mine["use_dora"] is True


def test_training_kwargs() -> None:
    assert apply(WITHOUT_PATCHES).training_kwargs() == {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }


# ---- with the training stack ----------------------------------------------------------------


def test_the_config_is_pefts_own() -> None:
    peft = pytest.importorskip("peft")
    config = apply(WITHOUT_PATCHES).lora_config(lora_dropout=0.1)
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.task_type) == (4, 8, None)
    assert set(config.target_modules) == {"q_proj"} and config.lora_dropout == 0.1
    other = Prescription("m", recipe={"peft_type": "IA3", "target_modules": ["a"]})
    with pytest.raises(InputError, match=r"IA3Config of PEFT .* has no nonsense"):
        apply(other).lora_config(nonsense=1)
    with pytest.raises(InputError, match="no adapter type 'NONE'"):
        apply(Prescription("m", recipe={"peft_type": "NONE"})).lora_config()


def test_loading_kwargs_load_a_model(tmp_path: Path) -> None:
    """The names are those of the installed transformers: the model has what was asked for."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    plain = Prescription("m", recipe={"dtype": "bfloat16", "attn_implementation": "eager"})
    kwargs = apply(plain).loading_kwargs()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **kwargs)
    assert model.dtype == torch.bfloat16
    assert apply(Prescription("m")).loading_kwargs() == {}
    quantized = apply(WITHOUT_PATCHES).loading_kwargs()["quantization_config"]
    assert quantized.load_in_4bit and quantized.bnb_4bit_compute_dtype == torch.bfloat16


def test_a_compute_dtype_may_be_left_to_the_library() -> None:
    transformers = pytest.importorskip("transformers")
    recipe = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "auto", "dtype": "auto"}
    kwargs = apply(Prescription("m", recipe=recipe)).loading_kwargs()
    asked = kwargs["quantization_config"]
    default = transformers.BitsAndBytesConfig(load_in_4bit=True)
    assert asked.load_in_4bit and asked.bnb_4bit_compute_dtype == default.bnb_4bit_compute_dtype
    assert "auto" in kwargs.values(), "the dtype of the checkpoint"


def test_patches_act_until_undone() -> None:
    pytest.importorskip("peft")
    from peft.tuners.tuners_utils import BaseTuner

    original = BaseTuner.forward
    with apply(FULL) as applied:
        assert isinstance(applied, Applied)
        assert BaseTuner.forward is not original
        again = apply(FULL)
        again.undo()
        again.undo()
        assert BaseTuner.forward is not original, "the first call still wants it"
    assert BaseTuner.forward is original


def test_a_patch_that_no_longer_fits_says_what_it_was_made_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peft = pytest.importorskip("peft")
    from lora_doctor.prescription.patches import PatchError

    monkeypatch.delattr(peft, "PeftModelForCausalLM")
    prescription = Prescription(
        "m", patches=(Patch("peft_without_generation"),), versions={"peft": "0.15.2"}
    )
    with pytest.raises(PatchError, match=r"made for peft 0\.15\.2"):
        apply(prescription)
