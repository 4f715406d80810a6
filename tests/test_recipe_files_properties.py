"""Recipe files, any content: a recipe or one line; an edit touches one key and reads back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import REMOVE, Edit
from lora_doctor.recipe.files.read_write import new_recipe_text, read_recipe, write_edits
from lora_doctor.recipe.recipe import Recipe, make_recipe


def write(folder: Path, text: str | bytes, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def compiles(text: str) -> bool:
    """Whether it can be a regular expression, which is what one text as target is."""
    try:
        re.compile(text)
    except re.error:
        return False
    return True


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), NAMES, st.sampled_from(["yes", "1e-3"])
)
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
KEYS = st.one_of(
    st.sampled_from(["r", "rank", "task_type", "target_modules", "dtype", "peft_type", "bias"]),
    st.text(max_size=10),
)
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

GOOD_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "r": st.integers(1, 1 << 16),
    "lora_alpha": st.floats(1e-9, 1e9),
    "lora_dropout": st.floats(0, 0.99),
    "use_dora": st.booleans(),
    "target_modules": st.one_of(NAMES.filter(compiles), st.lists(NAMES, min_size=1, max_size=5)),
    "task_type": st.sampled_from(["CAUSAL_LM", "SEQ_CLS", None]),
    "modules_to_save": st.one_of(st.none(), st.lists(NAMES, max_size=3)),
    "bias": NAMES,
    "rank_pattern": st.dictionaries(NAMES, st.integers(1, 64), max_size=3),
}
GOOD_RECIPES = st.fixed_dictionaries({}, optional=GOOD_VALUES)
GOOD_EDITS = st.sampled_from(sorted(GOOD_VALUES)).flatmap(
    lambda key: st.builds(Edit, st.just(key), st.one_of(st.just(REMOVE), GOOD_VALUES[key]))
)


@QUICK
@given(st.dictionaries(KEYS, JSON_VALUES, max_size=5), st.sampled_from([".json", ".yaml", ""]))
def test_any_mapping_is_a_recipe_or_an_input_error(
    tmp_path: Path, values: dict[str, Any], suffix: str
) -> None:
    path = write(tmp_path, json.dumps(values), f"recipe{suffix}")
    try:
        recipe = read_recipe(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(recipe, Recipe)


@QUICK
@given(st.one_of(st.binary(max_size=60), st.text("r: [8]{}\"'\n&*a!-?|>#,\t\r%@", max_size=40)))
def test_any_bytes_are_a_recipe_or_an_input_error(tmp_path: Path, data: bytes | str) -> None:
    data = data if isinstance(data, bytes) else data.encode()
    for suffix in (".yaml", ".json"):
        path = write(tmp_path, data, f"recipe{suffix}")
        try:
            write_edits(path, [Edit("r", 4)])
        except InputError as error:
            assert "\n" not in str(error)


def _check_edit(path: Path, text: str, edit: Edit) -> str:
    path.write_bytes(text.encode())
    before = read_recipe(path)
    new = write_edits(path, [edit])
    path.write_bytes(new.encode())
    assert read_recipe(path).values == before.edit([edit]).values, "reads back as edited"
    assert write_edits(path, [edit]) == new, "twice is once"
    return new


@QUICK
@given(
    values=GOOD_RECIPES,
    edit=GOOD_EDITS,
    indent=st.sampled_from([None, 2, "\t"]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_json_edits_touch_one_key(
    tmp_path: Path, values: dict[str, Any], edit: Edit, indent: Any, newline: str
) -> None:
    text = json.dumps(values, indent=indent).replace("\n", newline)
    new = _check_edit(tmp_path / "recipe.json", text, edit)
    for key, value in values.items():
        if key != edit.key:
            chunk = json.dumps({key: value}, indent=indent).replace("\n", newline)
            assert chunk.strip("{}").strip() in new


@QUICK
@given(
    values=GOOD_RECIPES.filter(bool), edit=GOOD_EDITS, newline=st.sampled_from(["\n", "\r\n"]),
    final=st.booleans(), flow=st.booleans(),
)  # fmt: skip
def test_yaml_edits_touch_one_key(
    tmp_path: Path, values: dict[str, Any], edit: Edit, newline: str, final: bool, flow: bool
) -> None:
    """Other entries keep every byte, comments above and behind them included."""
    written = {key: _yaml_entry(key, value, newline, flow) for key, value in values.items()}
    text = newline.join(["# top", *written.values(), "# end" + newline * final])
    new = _check_edit(tmp_path / "recipe.yaml", text, edit)
    for key, entry in written.items():
        if key != edit.key:
            assert entry in new
    assert new.startswith("# top" + newline)
    assert new.endswith("# end" + newline * final)


def _yaml_entry(key: str, value: Any, newline: str, flow: bool) -> str:
    above = f"# about {key}{newline}"
    if isinstance(value, list) and value and not flow:
        items = [f"  - {json.dumps(item)}  # {number}" for number, item in enumerate(value)]
        return above + newline.join([f"{key}:  # list", *items])
    if isinstance(value, dict) and value and not flow:
        items = [f"  {json.dumps(name)}: {item}  # x" for name, item in value.items()]
        return above + newline.join([f"{key}:", *items])
    return f"{above}{key}: {json.dumps(value)}  # said {key}"


@QUICK
@given(values=GOOD_RECIPES, comment=st.text(max_size=30))
def test_new_files_read_back(tmp_path: Path, values: dict[str, Any], comment: str) -> None:
    recipe = make_recipe(values, where="t", origin="option")
    text = new_recipe_text(recipe, comment)
    assert read_recipe(write(tmp_path, text)).values == recipe.values
