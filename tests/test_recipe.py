"""The recipe: normal forms, near misses, who set what, and edits that give a new one."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_doctor.cli.arguments import recipe_of
from lora_doctor.cli.next_command import command_line
from lora_doctor.errors import InputError
from lora_doctor.recipe.command_line import parse_target_modules
from lora_doctor.recipe.edit import REMOVE, Edit
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.recipe.keys import BY_NAME, EXCLUSIVE, KEYS, RecipeKey, check_value, known_keys
from lora_doctor.recipe.recipe import Recipe, make_recipe


def recipe(**values: Any) -> Recipe:
    return make_recipe(values, where="test", origin="option")


@pytest.mark.parametrize(
    ("key", "given_", "normal"),
    [
        ("dtype", "bf16", "bfloat16"),
        ("torch_dtype", "torch.float16", "float16"),
        ("class", "AutoModelForCausalLM", "AutoModelForCausalLM"),
        ("dtype", "auto", "auto"),
        ("task_type", "CAUSAL_LM", "CAUSAL_LM"),
        ("task_type", "none", None),
        ("task_type", None, None),
        ("rank", 4, 4),
        ("alpha", 0.5, 0.5),
        ("target_modules", {"b", "a"}, ["a", "b"]),
        ("target_modules", ("b", "a"), ["b", "a"]),
        ("target_modules", "all-linear", "all-linear"),
        ("exclude_modules", None, None),
        ("rank_pattern", None, {}),
        ("peft_type", "lora", "LORA"),
        ("fp16", True, True),
        ("learning_rate", 0, 0),
        ("autocast_adapter_dtype", False, False),
    ],
)
def test_normal_forms(key: str, given_: Any, normal: Any) -> None:
    (value,) = recipe(**{key: given_}).values.values()
    assert value == normal


def test_enums_of_peft_are_understood() -> None:
    class TaskType(str, Enum):
        CAUSAL_LM = "CAUSAL_LM"

    assert recipe(task_type=TaskType.CAUSAL_LM).get("task_type") == "CAUSAL_LM"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targetmodules": ["a"]}, "did you mean 'target_modules'"),
        ({"load_in_4bits": True}, "did you mean 'load_in_4bit'"),
        ({"lora_rank": 8}, "unknown key 'lora_rank'; did you mean 'r'?"),
        ({"lora_target_modules": ["a"]}, "did you mean 'target_modules'?"),
        ({"lora": {"r": 8}}, "unknown key 'lora'; keys are flat: put what is in it one level up"),
        ({"rank_patern": {"q": 8}}, "did you mean 'rank_pattern'?"),
        ({"model_name_or_path": "org/name"}, "it is the MODEL argument"),
        ({"base_model": "org/name"}, "it is the MODEL argument"),
        ({"qqqqq": 1}, "unknown key 'qqqqq'; see PEFT's LoraConfig"),
        ({1: 2}, "key 1 is not a string"),
        ({"task_type": "causal_lm"}, "in capitals, not 'causal_lm'"),  # PEFT refuses it
        ({"r": 8, "rank": 8}, "'r' is given twice (as 'rank' too)"),
        ({"r": 0}, "r must be a whole number from 1"),
        ({"r": True}, "r must be a whole number"),
        ({"r": 8.0}, "r must be a whole number"),
        ({"r": 1 << 17}, "r must be a whole number"),
        ({"lora_alpha": -1}, "a number from 0 up"),
        ({"lora_alpha": float("nan")}, "a number from 0 up"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"lora_alpha": 10**5000}, "lora_alpha"),
        ({"lora_dropout": 1.1}, "from 0 to 1"),
        ({"lora_dropout": float("nan")}, "from 0 to 1"),
        ({"use_dora": "yes"}, "true or false"),
        ({"target_modules": [""]}, "a list of module names"),
        ({"target_modules": 3}, "a list of module names"),
        ({"modules_to_save": "lm_head"}, "must be a list of names"),
        ({"task_type": "CASUAL_LM"}, "must be one of CAUSAL_LM"),
        ({"dtype": "int8"}, "float32, float16, bfloat16 or auto"),
        ({"model_class": " "}, "must be a string"),
        ({"rank_pattern": [1]}, "must be a mapping"),
        ({"rank_pattern": {1: 2}}, "must be a mapping"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exclude each other"),
        ({"fp16": True, "bf16": True}, "exclude each other"),
        ({"learning_rate": -1e-4}, "from 0 up"),
    ],
)
def test_what_cannot_be_is_one_line(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_recipe(values, where="here", origin="file")
    assert str(caught.value).startswith("here: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_edit_gives_a_new_recipe_and_says_who() -> None:
    first = recipe(r=8, use_dora=True)
    second = first.edit(
        [Edit("r", 16), Edit("use_dora", REMOVE), Edit("task_type", None), Edit("bias", REMOVE)]
    )
    assert first.values == {"r": 8, "use_dora": True}
    assert second.values == {"r": 16, "task_type": None}
    assert second.origins == {"r": "fix", "task_type": "fix"}
    with pytest.raises(InputError, match="fix: r must be a whole number"):
        first.edit([Edit("r", 0)])


def test_fill_takes_open_keys_and_override_wins() -> None:
    first = recipe(r=8)
    filled = first.fill({"r": 1, "lora_alpha": 2})
    assert filled.values == {"r": 8, "lora_alpha": 2}
    assert filled.origins == {"r": "option", "lora_alpha": "proposed"}
    assert filled.override({"r": 3}, "argument").get("r") == 3


def test_what_goes_to_peft_and_what_to_loading() -> None:
    values = recipe(r=8, load_in_4bit=True, dtype="fp16", gradient_checkpointing=True,
                    peft_type="LORA", revision="main")  # fmt: skip
    assert values.adapter_values() == {"r": 8}
    assert values.quantized == "4bit" and recipe().quantized is None
    assert values.peft_type == "LORA"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("q_proj, v_proj,", ["q_proj", "v_proj"]),
        ("all-linear", "all-linear"),
        (r".*\.q_proj", r".*\.q_proj"),
        ("model.layers.0.q_proj", ["model.layers.0.q_proj"]),
    ],
)
def test_target_modules_on_the_command_line(text: str, parsed: Any) -> None:
    assert parse_target_modules(text) == parsed


@pytest.mark.parametrize("text", ["", ",", "(", "a[b"])
def test_target_modules_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="--target-modules"):
        parse_target_modules(text)


def test_everything_that_python_hands_over(tmp_path: Path) -> None:
    assert as_recipe(None) == Recipe()
    given_ = recipe(r=8)
    assert as_recipe(given_) is given_
    assert as_recipe({"r": 8}).origins == {"r": "argument"}
    path = tmp_path / "recipe.yaml"
    path.write_text("r: 8\n")
    assert as_recipe(path).values == as_recipe(str(path)).values == {"r": 8}
    with pytest.raises(InputError, match="got int"):
        as_recipe(3)


def test_a_config_object_of_the_installed_peft() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["b", "a"], task_type="SEQ_CLS")
    taken = as_recipe(config)
    assert taken.complete
    assert taken.get("target_modules") == ["a", "b"] and taken.get("task_type") == "SEQ_CLS"
    json.dumps(taken.to_json())
    again = peft.LoraConfig(**taken.adapter_values())
    assert again.to_dict() == config.to_dict()
    assert {"layers_to_transform", "modules_to_save"} <= known_keys()


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(),
        st.integers(10**300, 10**320),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=3),
        st.tuples(inner),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.one_of(st.sampled_from(sorted(known_keys())), st.text(max_size=6)),
                       ANYTHING, max_size=4))  # fmt: skip
def test_any_mapping_is_a_recipe_or_an_input_error(values: dict[Any, Any]) -> None:
    try:
        made = make_recipe(values, where="here", origin="file")
    except InputError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)
        return
    for key, value in made.values.items():
        assert repr(check_value(key, value, "again")) == repr(value), "normal is normal"
    assert Recipe.from_json(made.to_json()) == made


# --- one table: an option is read, checked and written again --------------------------------------

#: A value for each kind of option, as a user types it.
TYPED = {str: "all-linear", int: "4", float: "0.5", bool: ""}
SPECIAL = {
    "task_type": "SEQ_CLS", "dtype": "bf16", "memory_budget": "24GB", "lora_alpha": "16.0",
    "gpu": "l4,a100-80gb", "sharding": "zero3",
}  # fmt: skip
OPTIONS = [key for key in KEYS if key.option]


def parsed_options(words: list[str]) -> dict[str, Any]:
    """What the command line hands on for these words, by the real parser of ``check``."""
    from lora_doctor.cli.commands import cli

    command = cli.commands["check"]
    return dict(command.make_context("check", ["arch:gpt2", *words]).params)


@pytest.mark.parametrize("key", OPTIONS, ids=lambda key: key.name)
def test_a_key_goes_through_the_command_line_and_back(key: RecipeKey) -> None:
    """One entry in the table is all that a key needs: option, check and next command follow."""
    option = key.option
    assert option is not None
    text = SPECIAL.get(key.name, TYPED[option.type])
    for spelling in (key.spelling, *option.aliases):
        options = parsed_options([spelling, *([text] if text else [])])
        made = recipe_of(options)
        assert list(made.values) == [key.name]
        assert made.get(key.name) == check_value(key.name, made.get(key.name), "again")
        again = parsed_options(command_line(options)[1:])
        assert recipe_of(again) == made


def test_a_switch_that_is_off_is_carried_as_off() -> None:
    options = parsed_options(["--no-use-dora", "--class", "AutoModel", "--lora-alpha", "16.0"])
    made = recipe_of(options)
    assert made.values == {"use_dora": False, "model_class": "AutoModel", "lora_alpha": 16}
    assert command_line(options) == [
        "arch:gpt2", "--lora-alpha", "16", "--no-use-dora", "--class", "AutoModel",
    ]  # fmt: skip


def test_no_two_keys_share_a_name() -> None:
    names = [name for key in KEYS for name in (key.name, *key.aliases)]
    spellings = [
        word
        for key in OPTIONS
        for word in (key.spelling, *(key.option.aliases if key.option else ()))
    ]
    assert len(set(names)) == len(names) and len(set(spellings)) == len(spellings)
    assert all(other in BY_NAME for pair in EXCLUSIVE for other in pair)
