"""What a framework refuses, read off its own classes: without it being installed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lora_doctor
from lora_doctor.recipe.files.format import format_named, framework_named, remarks_of
from lora_doctor.recipe.files.read_write import read_recipe
from lora_doctor.recipe.files.refusals import none_of_the_choices
from lora_doctor.results.finding import Finding
from lora_doctor.static.installed.field_choices import choices_of
from lora_doctor.static.installed.framework_fields import Fields


def found(tmp_path: Path, text: str, name: str = "set_up.yaml") -> dict[str, Finding]:
    """The findings above info, by rule."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    diagnosis = lora_doctor.check(path, depth="static")
    return {one.rule: one for one in diagnosis.findings if one.severity != "info"}


@pytest.mark.parametrize(
    ("annotation", "allowed"),
    [
        ("Literal['sft', 'dpo']", ("sft", "dpo")),
        ("Optional[Literal['a', 'b', None]]", ("a", "b")),
        ("Kind | None", ("x", "y")),
        ("Kind | Annotated[str, StringConstraints(pattern='^own_')] | None", ("x", "y", "^own_")),
        ("str | Literal['a']", ()),
        ("Optional[str]", ()),
        ("Other | None", ()),
    ],
)
def test_an_annotation_tells_the_values_only_where_it_lists_them_all(
    annotation: str, allowed: tuple[str, ...]
) -> None:
    (kind,) = ast.parse("class Kind(str, Enum):\n    A = 'x'\n    B = 'y'\n").body
    assert isinstance(kind, ast.ClassDef)
    read = ast.parse(annotation, mode="eval").body
    assert choices_of(read, lambda name: kind if ast.unparse(name) == "Kind" else None) == allowed


@pytest.mark.parametrize(
    ("entries", "near"),
    [
        ({"rl": "dpoo"}, ["dpo"]),
        ({"rl": "ppo2000"}, [""]),
        ({"rl": "dpo", "chat_template": "tokenizer_default_fallback_mine"}, []),
        ({"chat_template": "chatlm"}, ["chatml"]),
        ({"template": "mistrall"}, ["mistral"]),
        ({"template": "qwen4"}, []),  # of a release to come
        ({"template": "of_my_own"}, []),  # of a plugin
        ({"other": "x", "template": "qwen3"}, []),
        ({"flag": "True"}, []),  # how a command line writes it
    ],
)
def test_a_value_is_refused_where_no_release_can_have_it(
    entries: dict[str, str], near: list[str]
) -> None:
    fields = Fields(
        "framework", "1.0", False,
        choices={"rl": ("dpo", "kto"), "flag": ("group",),
                 "chat_template": ("chatml", "jinja", "^tokenizer_default_fallback_")},
        registered={"template": ("qwen3", "mistral")},
    )  # fmt: skip
    remarks = list(none_of_the_choices(fields, entries))
    assert [
        dict(remark.entries).popitem()[1] if remark.entries else "" for remark in remarks
    ] == near


@pytest.mark.parametrize("name", ["LLaMA-Factory", "axolotl", "ms-swift", "TRL"])
def test_the_defaults_of_a_framework_are_among_its_choices(name: str) -> None:
    """Every default that is a string, and every registered name, is a value that it takes."""
    fields = framework_named(name).fields()
    assert fields is not None
    entries = {key: value for key, value in fields.defaults.items() if isinstance(value, str)}
    entries |= {key: values[0] for key, values in fields.registered.items()}
    assert list(none_of_the_choices(fields, entries)) == []
    assert format_named(name).SPELLINGS.of_key("learning_rate")


def test_a_value_of_no_choice_is_found_at_its_line_and_mended(tmp_path: Path) -> None:
    text = "base_model: arch:llama\nadapter: lora\nlora_target_linear: true\nrl: dpoo  # pairs\n"
    finding = found(tmp_path, text)["LD533"]
    assert (finding.severity, finding.location.line) == ("error", 4)
    assert "dpo, " in finding.message
    assert [(edit.key, edit.value) for edit in finding.fixes[0].edits] == [("entry:rl", "dpo")]


_BOTH = """\
model_name_or_path: arch:llama
stage: sft
finetuning_type: lora
lora_target: all
template: qwen
fp16: true
bf16: true
"""


def test_two_settings_that_exclude_each_other_are_one_finding(tmp_path: Path) -> None:
    """Not an error without a line; and bfloat16 goes on being looked at."""
    assert set(found(tmp_path, _BOTH)) == {"LD533"}
    assert read_recipe(tmp_path / "set_up.yaml").get("bf16") is True
    assert found(tmp_path, _BOTH.replace("fp16: true", "fp16: false")) == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        # A key without a value sets nothing where unknown keys are ignored.
        ("set_up.yaml", "base_model: arch:llama\nadapter: lora\nlora_target_linear: true\n"
         "gptq_groupsize:\n"),
        # axolotl teaches FSDP 2 to shard 8-bit weights.
        ("set_up.yaml", "base_model: arch:llama\nadapter: lora\nlora_target_linear: true\n"
         "load_in_8bit: true\nfsdp_config:\n  fsdp_version: 2\n"),
        # ms-swift's word for flash_attention_2, and attention that axolotl brings itself.
        ("run.sh", "swift sft --model arch:llama --tuner_type lora --attn_impl flash_attn"
         " --torch_dtype bfloat16\n"),
        # axolotl passes fp16 on only where bf16 is off.
        ("set_up.yaml", "base_model: arch:llama\nadapter: lora\nlora_target_linear: true\n"
         "bf16: true\nfp16: true\n"),
        ("set_up.yaml", "base_model: arch:llama\nadapter: lora\nlora_target_linear: true\n"
         "attn_implementation: xformers\nsample_packing: true\n"),
    ],
    ids=["no-value", "fsdp-2", "flash_attn", "bf16-wins", "xformers"],
)  # fmt: skip
def test_what_the_framework_takes_is_no_finding(name: str, text: str, tmp_path: Path) -> None:
    assert found(tmp_path, text, name) == {}


def test_words_of_a_framework_for_an_attention(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("swift sft --model arch:llama --tuner_type lora --attn_impl flash_attn\n")
    assert read_recipe(script).get("attn_implementation") == "flash_attention_2"


def test_remarks_of_a_format_are_its_own_and_those_of_all() -> None:
    kinds = {
        remark.names for remark in remarks_of("TRL", {"bf16": True, "fp16": True, "lora_r": 8})
    }
    assert kinds == {("lora_r",), ("fp16", "bf16")}
