"""Recipe files: what is not touched stays, what is wrong is one line, what is new reads back."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import REMOVE, Edit
from lora_doctor.recipe.files.read_write import (
    apply_edits,
    holds_edit,
    new_recipe_text,
    read_recipe,
    recipe_diff,
    without_place,
    write_edits,
)
from lora_doctor.recipe.recipe import Recipe, make_recipe

YAML = """\
# How we train
r: 8   # rank
alpha: &a 16
target_modules:   # which
  - q_proj   # attention
  # and the value
  - v_proj

# the loop
gradient_checkpointing_kwargs:
  use_reentrant: true  # hm
  other: 'x'
torch_dtype: "bf16"  # native
lora_dropout: 0.1
# end
"""

ADAPTER = {
    "base_model_name_or_path": "org/model",
    "bias": "none",
    "field_of_the_future": {"a": [1, 2]},
    "inference_mode": True,
    "lora_alpha": 16,
    "peft_type": "LORA",
    "r": 8,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}


def write(folder: Path, text: str | bytes, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_yaml_is_read_with_its_aliases(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, YAML))
    assert recipe.values["lora_alpha"] == 16
    assert recipe.values["dtype"] == "bfloat16"
    assert set(recipe.origins.values()) == {"file"}
    assert not recipe.complete


@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.json", "recipe", "recipe.txt"])
def test_json_is_read_under_any_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, '{"r": 4, "task_type": "CAUSAL_LM"}', name)
    assert read_recipe(path).values == {"r": 4, "task_type": "CAUSAL_LM"}


def test_an_adapter_config_is_complete_and_its_unknown_keys_are_tolerated(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, json.dumps(ADAPTER), "adapter_config.json"))
    assert recipe.complete
    assert "field_of_the_future" not in recipe
    assert recipe.values["target_modules"] == ["q_proj", "v_proj"]


def test_a_recipe_that_names_its_peft_type_and_how_to_load_is_ours(tmp_path: Path) -> None:
    path = write(tmp_path, '{"peft_type": "LORA", "load_in_4bit": true}', "recipe.json")
    assert not read_recipe(path).complete


def test_only_the_value_changes_and_comments_stay(tmp_path: Path) -> None:
    path = write(tmp_path, YAML)
    new = write_edits(path, [Edit("r", 32), Edit("dtype", "float16")])
    assert new == YAML.replace("r: 8 ", "r: 32 ").replace('"bf16"', "float16")


def test_a_list_keeps_the_lines_of_items_that_stay(tmp_path: Path) -> None:
    path = write(tmp_path, YAML)
    new = write_edits(path, [Edit("target_modules", ["q_proj", "k_proj", "v_proj"])])
    assert new == YAML.replace("# attention\n", "# attention\n  - k_proj\n")


def test_a_list_becomes_a_text_and_back(tmp_path: Path) -> None:
    path = write(tmp_path, YAML)
    new = write_edits(path, [Edit("target_modules", "all-linear")])
    block = "   # which\n  - q_proj   # attention\n  # and the value\n  - v_proj\n"
    assert new == YAML.replace(block, " all-linear   # which\n")
    back = write_edits(write(tmp_path, new), [Edit("target_modules", ["a", "b"])])
    assert back == new.replace("all-linear", "[a, b]")


def test_a_nested_mapping_is_edited_by_its_entries(tmp_path: Path) -> None:
    path = write(tmp_path, YAML)
    value = {"use_reentrant": False, "more": 1}
    new = write_edits(path, [Edit("gradient_checkpointing_kwargs", value)])
    want = YAML.replace("use_reentrant: true", "use_reentrant: false")
    assert new == want.replace("  other: 'x'\n", "  more: 1\n")


def test_a_new_key_goes_behind_the_last_one_and_a_removed_one_takes_its_line(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, YAML)
    assert write_edits(path, [Edit("bias", "none")]) == YAML.replace("0.1\n", "0.1\nbias: 'none'\n")
    assert write_edits(path, [Edit("r", REMOVE)]) == YAML.replace("r: 8   # rank\n", "")
    assert write_edits(path, [Edit("use_dora", REMOVE)]) == YAML


def test_removing_an_anchored_value_that_is_used_elsewhere_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "alpha: &a 16\nr: *a\n")
    assert write_edits(path, [Edit("r", 8)]) == "alpha: &a 16\nr: 8\n"
    assert write_edits(path, [Edit("r", REMOVE)]) == "alpha: &a 16\n"
    with pytest.raises(InputError, match="by hand"):
        write_edits(path, [Edit("lora_alpha", REMOVE)])


@pytest.mark.parametrize(
    ("old", "edit", "new"),
    [
        ("{r: 8, alpha: 16}", Edit("r", 4), "{r: 4, alpha: 16}"),
        (
            "{r: 8, alpha: 16}  # c\n",
            Edit("use_dora", True),
            "{r: 8, alpha: 16, use_dora: true}  # c\n",
        ),
        ("{r: 8, }\n", Edit("use_dora", True), "{r: 8, use_dora: true, }\n"),
        ("{r: 8, alpha: 16}", Edit("lora_alpha", REMOVE), "{r: 8}"),
        ("{r: 8, alpha: 16}", Edit("r", REMOVE), "{alpha: 16}"),
        ("r: 8", Edit("lora_alpha", 2), "r: 8\nlora_alpha: 2"),
        ("r: 8\r\n", Edit("lora_alpha", 2), "r: 8\r\nlora_alpha: 2\r\n"),
        ("r: 8\n", Edit("r", REMOVE), "{}\n"),
        ("r: 8\r\n", Edit("r", REMOVE), "{}\r\n"),
        (
            "task_type:   # none yet\n",
            Edit("task_type", "SEQ_CLS"),
            "task_type: SEQ_CLS   # none yet\n",
        ),
        ("---\nr: 8\n...\n", Edit("lora_alpha", 2), "---\nr: 8\nlora_alpha: 2\n...\n"),
        ("r: 8\n\n# tail\n", Edit("lora_alpha", 2), "r: 8\nlora_alpha: 2\n\n# tail\n"),
        (
            "model_class: |\n  A\n\n# x\nr: 8\n",
            Edit("model_class", "B"),
            "model_class: B\n\n# x\nr: 8\n",
        ),
        ("target_modules:\n- a\n- b", Edit("target_modules", ["b"]), "target_modules:\n- b"),
        (
            "target_modules: [a, b]  # c\n",
            Edit("target_modules", ["b"]),
            "target_modules: [b]  # c\n",
        ),
        (
            "target_modules:\n  - a\n  - b  # c\n# d\n",
            Edit("r", 1),
            "target_modules:\n  - a\n  - b  # c\nr: 1\n# d\n",
        ),
        ("é: 1\n", Edit("r", 1), None),
        ("<<: {r: 8}\nalpha: 1\n", Edit("r", 9), "<<: {r: 8}\nalpha: 1\nr: 9\n"),
        (
            '{\n  "r": 8, # c\n  "alpha": 1 # d\n}\n',
            Edit("use_dora", True),
            '{\n  "r": 8, # c\n  "alpha": 1, # d\n  "use_dora": true\n}\n',
        ),
    ],
)
def test_yaml_layouts(tmp_path: Path, old: str, edit: Edit, new: str | None) -> None:
    path = write(tmp_path, old)
    if new is None:
        with pytest.raises(InputError):
            write_edits(path, [edit])
        return
    assert write_edits(path, [edit]) == new
    write(tmp_path, new)
    assert write_edits(path, [edit]) == new, "twice is once"


@pytest.mark.parametrize(
    ("old", "edit", "new"),
    [
        ('{"r": 8, "alpha": 16}', Edit("r", 4), '{"r": 4, "alpha": 16}'),
        ('{"r": 8}', Edit("lora_alpha", 4), '{"r": 8, "lora_alpha": 4}'),
        ("{}", Edit("r", 4), '{"r": 4}'),
        ("{\n}", Edit("r", 4), '{\n  "r": 4\n}'),
        ('{\n\t"r": 8\n}\n', Edit("lora_alpha", 4), '{\n\t"r": 8,\n\t"lora_alpha": 4\n}\n'),
        ('{\r\n  "r": 8\r\n}', Edit("lora_alpha", 4), '{\r\n  "r": 8,\r\n  "lora_alpha": 4\r\n}'),
        ('{\n  "r": 8,\n  "alpha": 1\n}', Edit("r", REMOVE), '{\n  "alpha": 1\n}'),
        ('{\n  "r": 8,\n  "alpha": 1\n}', Edit("lora_alpha", REMOVE), '{\n  "r": 8\n}'),
        ('{"r": 8}', Edit("r", REMOVE), "{}"),
        (
            '{\n\t"target_modules": ["a", "b"]\n}',
            Edit("target_modules", ["b"]),
            '{\n\t"target_modules": ["b"]\n}',
        ),
        (
            '{\n\t"target_modules": [\n\t\t"a"\n\t]\n}',
            Edit("target_modules", ["b", "c"]),
            '{\n\t"target_modules": [\n\t\t"b",\n\t\t"c"\n\t]\n}',
        ),
        (
            '{\n  "target_modules": null\n}',
            Edit("target_modules", ["b"]),
            '{\n  "target_modules": [\n    "b"\n  ]\n}',
        ),
        ('{"bias": "\\u00e9", "r" : 8 }', Edit("r", 1), '{"bias": "\\u00e9", "r" : 1 }'),
    ],
)
def test_json_layouts(tmp_path: Path, old: str, edit: Edit, new: str) -> None:
    path = write(tmp_path, old, "recipe.json")
    assert write_edits(path, [edit]) == new
    write(tmp_path, new, "recipe.json")
    assert write_edits(path, [edit]) == new, "twice is once"


def test_what_peft_wrote_is_edited_as_peft_would(tmp_path: Path) -> None:
    """The bytes are those of ``save_pretrained`` with the other value."""
    path = write(tmp_path, json.dumps(ADAPTER, indent=2, sort_keys=True), "adapter_config.json")
    edits = [Edit("target_modules", ["a", "b", "c"]), Edit("r", 64), Edit("task_type", None)]
    want = {**ADAPTER, "target_modules": ["a", "b", "c"], "r": 64, "task_type": None}
    assert write_edits(path, edits) == json.dumps(want, indent=2, sort_keys=True)


def test_an_adapter_config_has_no_place_for_loading_keys(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(ADAPTER), "adapter_config.json")
    assert not holds_edit(path, path.read_bytes(), Edit("dtype", "bfloat16"))
    assert holds_edit(path, path.read_bytes(), Edit("r", 16))
    with pytest.raises(InputError, match="no key 'dtype'"):
        write_edits(path, [Edit("dtype", "bfloat16")])


def test_what_follows_from_another_edit_needs_no_place_of_its_own(tmp_path: Path) -> None:
    """LLaMA-Factory has no key for the dtype: ``bf16: true`` is one."""
    text = "model_name_or_path: m\nstage: sft\nfinetuning_type: lora\nfp16: true\n"
    recipe = read_recipe(write(tmp_path, text))
    assert recipe.get("dtype") == "float16"
    dtype, own, other = Edit("dtype", "bfloat16"), Edit("bf16", True), Edit("fp16", False)
    assert without_place(recipe, [dtype, own, other]) == []
    assert without_place(recipe, [Edit("dtype", "float32"), own, other]) == ["dtype"]
    assert without_place(recipe, [dtype]) == ["dtype"]


def test_a_byte_order_mark_stays(tmp_path: Path) -> None:
    for name, text in (("r.json", '{"r": 8}'), ("r.yaml", "r: 8\n")):
        path = write(tmp_path, b"\xef\xbb\xbf" + text.encode(), name)
        apply_edits(path, [Edit("r", 9)])
        assert path.read_bytes() == b"\xef\xbb\xbf" + text.replace("8", "9").encode()


def test_the_old_file_is_kept_and_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path, "r: 1\n")
    path.chmod(0o640)
    first = apply_edits(path, [Edit("r", 2)])
    assert first == tmp_path / "recipe.yaml.bak"
    assert first.read_text() == "r: 1\n"
    second = apply_edits(path, [Edit("r", 3)])
    assert second == tmp_path / "recipe.yaml.bak.1"
    assert second.read_text() == "r: 2\n"
    assert apply_edits(path, [Edit("r", 3)]) is None
    write(tmp_path, "r: 1\n")
    assert apply_edits(path, [Edit("r", 3)]) == first, "an equal backup is there already"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["recipe.yaml", "recipe.yaml.bak", "recipe.yaml.bak.1"]


def test_a_symlink_stays_one(tmp_path: Path) -> None:
    target = write(tmp_path, "r: 1\n", "real.yaml")
    link = tmp_path / "link.yaml"
    link.symlink_to(target)
    assert apply_edits(link, [Edit("r", 2)]) == tmp_path / "link.yaml.bak"
    assert link.is_symlink()
    assert target.read_text() == "r: 2\n"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, "r: 1\n")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            apply_edits(path, [Edit("r", 2)])
    finally:
        tmp_path.chmod(0o700)
    assert path.read_text() == "r: 1\n"


def test_a_write_that_fails_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "r: 1\n")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        apply_edits(path, [Edit("r", 2)])
    assert path.read_text() == "r: 1\n"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("r: [1\n", "r.yaml", "r.yaml:2: is not usable YAML"),
        ("a: 1\nr: 'x\n", "r.yaml", "is not usable YAML"),
        ('{"r": 1,\n}', "r.json", "r.json:2: is not JSON"),
        ("r: 1\nr: 2\n", "r.yaml", 'r.yaml:2: is not usable YAML: found duplicate key "r"'),
        ('{"r": 1,\n "r": 2}', "r.json", "r.json:2: key 'r' is given twice"),
        ("r: 1\nrank: 2\n", "r.yaml", "'r' and 'rank' both set r; keep one"),
        ("- r\n", "r.yaml", "is not a mapping"),
        ("hello\n", "r.yaml", "is not a mapping"),
        ("[1]", "r.json", "not an object"),
        ("", "r.yaml", "is empty"),
        ("  \n", "r.json", "is empty"),
        ("# only a comment\n", "r.yaml", "is empty"),
        (b"r: \xff\n", "r.yaml", "is not UTF-8"),
        ("r: 1".encode("utf-16"), "r.yaml", "is not UTF-8"),
        ("targetmodules: [q]\n", "r.yaml", "did you mean 'target_modules'"),
        ("target_modules: 8\n", "r.yaml", "target_modules must be a list of module names"),
        ("r: 1\n--- \nr: 2\n", "r.yaml", "another document"),
        ("r: !!python/object/apply:os.system ['true']\n", "r.yaml", "could not determine"),
        ("model_class: 2020-01-01\n", "r.yaml", "put it in quotes"),
        ("r: !!int x\n", "r.yaml", "r.yaml"),
        ("r: !!bool x\n", "r.yaml", "r.yaml"),
        ("r: 1\n1: 2\n", "r.yaml", "is not a string"),
        (BOMB, "r.yaml", "expand to too many values"),
        ("r: &a [*a]\n", "r.yaml", "contains itself"),
        ("r: " + "[" * 5000, "r.yaml", "nested too deeply"),
        ('{"r": ' + "[" * 100_000, "r.json", "nested too deeply"),
        ('{"r": ' + "[" * 50 + "]" * 50 + "}", "r.json", "nested too deeply"),
        ('{"r": ' + "9" * 5000 + "}", "r.json", "not usable JSON"),
        ('{"r": ' + "9" * 50 + "}", "r.json", "more than 18 digits"),
        ("r: 0x" + "f" * 5000 + "\n", "r.yaml", "more than 18 digits"),
        ('{"bias": "\\ud800"}', "r.json", "surrogate"),
        ("load_in_4bit: true\nload_in_8bit: true\n", "r.yaml", "exclude each other"),
    ],
)
def test_bad_files_are_one_line_with_the_path(
    tmp_path: Path, text: str | bytes, name: str, message: str
) -> None:
    path = write(tmp_path, text, name)
    for action in (read_recipe, lambda p: write_edits(p, [Edit("r", 1)])):
        with pytest.raises(InputError) as caught:
            action(path)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 400 + len(str(path))
    assert sorted(os.listdir(tmp_path)) == [name]


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    big = tmp_path / "big.json"
    with big.open("wb") as stream:
        stream.truncate(17 << 20)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "none.yaml", "no such file"),
        (dangling, "no such file"),
        (fifo, "not a regular file"),
        (big, "17 MiB"),
        (Path("a\0b"), "a"),
        (Path("x" * 5000), "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            read_recipe(path)


def test_a_new_file_says_what_the_user_did_not_set(tmp_path: Path) -> None:
    recipe = make_recipe({"r": 8, "bias": "none"}, where="t", origin="option")
    recipe = recipe.fill({"target_modules": [f"layer_{number}" for number in range(20)]})
    recipe = recipe.edit([Edit("task_type", None), Edit("dtype", "bfloat16")])
    text = new_recipe_text(recipe, "for org/model\nby lora-doctor")
    assert text.startswith("# for org/model\n# by lora-doctor\n")
    assert "r: 8\n" in text
    assert "target_modules:  # proposed by lora-doctor\n  - layer_0\n" in text
    assert "task_type: null  # fixed by lora-doctor\n" in text
    assert read_recipe(write(tmp_path, text)).values == recipe.values


def test_an_empty_recipe_can_be_written(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, new_recipe_text(Recipe()))).values == {}


def test_a_diff_shows_the_file_and_a_missing_line_end() -> None:
    diff = recipe_diff("r.yaml", "r: 8", "r: 9")
    want = ["--- r.yaml", "+++ r.yaml (fixed)", "@@ -1 +1 @@", "-r: 8", "\\ No newline", "+r: 9"]
    assert all(line.startswith(start) for line, start in zip(diff.splitlines(), want, strict=False))
    assert recipe_diff("r.yaml", "r: 8", "r: 8") == ""


def test_a_value_that_no_key_can_have_is_for_the_rules_to_tell(tmp_path: Path) -> None:
    """Quotes are no reason to stop: what else is wrong with the run would not be said."""
    file = tmp_path / "recipe.yaml"
    file.write_text("target_modules: [q]\nlora_dropout: '0.1'\nlora_alpha: '16'\n")
    recipe = read_recipe(file)
    assert recipe.values == {"target_modules": ["q"]}
    assert [(one.key, one.value, str(one.place)) for one in recipe.impossible] == [
        ("lora_dropout", "0.1", f"{file}:2"),
        ("lora_alpha", "16", f"{file}:3"),
    ]
    assert write_edits(file, [Edit("lora_alpha", 16)]).endswith("lora_alpha: 16\n")
    left = recipe.edit([Edit("lora_alpha", 16)]).impossible
    assert [one.key for one in left] == ["lora_dropout"]
