"""What a framework refuses, read off its own classes: without it being installed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.errors import InputError
from lora_doctor.recipe.files.format import format_named, framework_named, remarks_of
from lora_doctor.recipe.files.named_paths import absent_paths
from lora_doctor.recipe.files.read_write import read_recipe
from lora_doctor.recipe.files.refusals import nearest, none_of_the_choices
from lora_doctor.recipe.keys import config_fields
from lora_doctor.results.finding import Finding
from lora_doctor.static.installed.environment import known_architectures
from lora_doctor.static.installed.field_choices import choices_of, choices_of_fields
from lora_doctor.static.installed.framework_fields import Fields
from lora_doctor.static.installed.handled_values import handled_values


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


def test_an_installed_release_has_what_it_registers_and_nothing_else() -> None:
    """Unless code of the user's may register more."""
    fields = Fields("framework", "1.0", True, registered={"template": ("qwen3", "mistral")})
    (remark,) = none_of_the_choices(fields, {"template": "qwen4"})
    assert remark.names == ("template",) and "qwen3, mistral" in remark.what
    assert not list(none_of_the_choices(fields, {"template": "qwen4"}, extended=True))
    assert not list(none_of_the_choices(fields, {"template": "qwen3"}))


_ARGUMENTS = """
class Kind(str, Enum):
    A = "steps"
    B = "epoch"
class Arguments:
    strategy: Kind | str = field(default="steps")
    sometimes: str = "x"
    listed: str = field(default="a", metadata={"help": "", "choices": ["a", "b"]})
    open: list[str] = field(default_factory=lambda: ["a"])
    def __post_init__(self):
        self.strategy = Kind(self.strategy)
        if self.open:
            self.sometimes = Kind(self.sometimes)
"""


def test_a_class_lists_values_for_its_parser_and_by_what_it_makes_of_them() -> None:
    """Not where it does so under a condition only."""
    kind, arguments = ast.parse(_ARGUMENTS).body
    assert isinstance(kind, ast.ClassDef) and isinstance(arguments, ast.ClassDef)
    found = choices_of_fields(arguments, lambda name: kind if ast.unparse(name) == "Kind" else None)
    assert dict(found) == {
        "strategy": ("steps", "epoch"), "sometimes": (), "listed": ("a", "b"), "open": (),
    }  # fmt: skip


_QUOTED = """\
model_name_or_path: arch:llama
stage: sft
do_train: true
finetuning_type: lora
lora_target: q_proj
template: alpaca
dataset: "2024"
learning_rate: 1e-4
lora_dropout: 5.0e-2
lora_rank: QUOTED
use_rslora: "false"
"""


def test_numbers_in_quotes_are_no_numbers_to_a_framework_that_takes_them_as_they_are(
    tmp_path: Path,
) -> None:
    """LLaMA-Factory hands a file to ``parse_dict``: ``lora_rank: "8"`` is a text there, and so is
    "false". A text where one belongs is none, and nor is what a command line says."""
    said = found(tmp_path, _QUOTED.replace("QUOTED", "'8'"))
    assert said["LD533"].location.line == 10 and "lora_rank" in said["LD533"].message
    assert said["LD533"].fixes[0].edits[0].value == 8
    assert said["LD531"].location.line == 11 and said["LD531"].fixes[0].safety == "unsafe"
    assert "LD533" not in found(tmp_path, _QUOTED.replace("QUOTED", "8"))
    options = [f"--{line.replace(': ', ' ')}" for line in _QUOTED.splitlines()]
    command = f"llamafactory-cli train {' '.join(options)}\n".replace("QUOTED", "'8'")
    assert not found(tmp_path, command, "run.sh").keys() & {"LD531", "LD533"}
    trl = "model_name_or_path: arch:llama\nuse_peft: true\nlora_r: '8'\n"
    assert "LD533" not in found(tmp_path, trl)  # its parser makes a number of it


_TRAINER = """
MORE = ("exo", "aot")
class Trainer:
    def loss(self):
        for loss_type in self.loss_types:
            if loss_type == "sigmoid":
                pass
            elif loss_type in ["hinge", "ipo"]:
                pass
            elif self.loss_type in MORE:
                pass
            else:
                raise ValueError(loss_type)
    def other(self):
        if self.args.mode not in ("left", "right"):
            raise ValueError
        if self.args.style == "a":
            pass
        elif self.args.style in self.known:
            pass
        else:
            raise ValueError
        if self.kind == "a":
            pass
"""


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("loss_type", ("sigmoid", "hinge", "ipo", "exo", "aot")),
        ("mode", ("left", "right")),
        ("style", ()),  # some are not known
        ("kind", ()),  # the others are no error
    ],
)
def test_the_values_that_a_trainer_goes_through_are_those_that_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, values: tuple[str, ...]
) -> None:
    package = f"trainers_of_{name}"
    (tmp_path / package / "inner").mkdir(parents=True)
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / "inner" / "some_trainer.py").write_text(_TRAINER)
    monkeypatch.syspath_prepend(tmp_path)
    assert handled_values((package,), name) == values


@pytest.mark.parametrize(
    ("value", "written"),
    [("sigmod", "sigmoid"), (["sft", "sigmod"], ["sft", "sigmoid"]), ("sigmoid", None),
     (["sigmoid"], None), ("of_my_own_trainer", None), ("ipo2", None)],
)  # fmt: skip
def test_a_value_that_no_trainer_knows_is_refused_where_another_was_meant(
    value: Any, written: Any
) -> None:
    """Whoever has a trainer of his own has other values."""
    fields = Fields("framework", "1.0", True, {"loss": "x"}, frozenset({"loss"}))
    known = {"loss": ("sigmoid", "ipo", "sft")}
    remarks = [*none_of_the_choices(fields, {"loss": value}, known=lambda name: known[name])]
    assert [dict(one.entries)["loss"] for one in remarks] == ([written] if written else [])


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


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("flash_attn: true", "flash_attn must be one of auto, disabled, sdpa, fa2, fa3, not True"),
        ("lora_rank: many", "lora_rank"),
    ],
)
def test_a_value_of_another_type_is_told_by_the_name_in_the_file(
    tmp_path: Path, entry: str, says: str
) -> None:
    path = tmp_path / "set_up.yaml"
    path.write_text(f"{_BOTH.replace('bf16: true', '')}{entry}\n", encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read_recipe(path)


@pytest.mark.parametrize(
    ("name", "value", "targets"),
    [
        ("set_up.sh", "q_proj,v_proj", ["q_proj,v_proj"]),  # one name, which no module has
        ("set_up.sh", "q_proj v_proj", ["q_proj", "v_proj"]),
        ("set_up.yaml", "q_proj,v_proj", ["q_proj,v_proj"]),
        ("set_up.yaml", "[q_proj, v_proj]", ["q_proj", "v_proj"]),
    ],
)
def test_ms_swift_takes_no_names_apart(
    tmp_path: Path, name: str, value: str, targets: list[str]
) -> None:
    path = tmp_path / name
    options = f"swift sft --model arch:llama --tuner_type lora --target_modules {value}\n"
    entries = f"model: arch:llama\ntuner_type: lora\ntarget_modules: {value}\n"
    path.write_text(options if name.endswith(".sh") else entries, encoding="utf-8")
    assert read_recipe(path).get("target_modules") == targets


def test_trl_reads_one_of_two_data_sets(tmp_path: Path) -> None:
    both = "dataset_name: a/b\ndatasets:\n  - path: c/d\n"
    text = f"model_name_or_path: arch:llama\nuse_peft: true\n{both}"
    finding = found(tmp_path, text)["LD531"]
    assert finding.location.line == 3
    assert [edit.key for edit in finding.fixes[0].edits] == ["entry:dataset_name"]
    assert "LD531" not in found(tmp_path, text.replace("dataset_name: a/b\n", ""))


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
        # All weights are trained on purpose where the adapter is left blank.
        ("set_up.yaml", "base_model: arch:llama\nadapter:\nlora_r: 8\nlora_target_linear: true\n"),
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
    ids=["no-value", "blank-adapter", "fsdp-2", "flash_attn", "bf16-wins", "xformers"],
)  # fmt: skip
def test_what_the_framework_takes_is_no_finding(name: str, text: str, tmp_path: Path) -> None:
    assert found(tmp_path, text, name) == {}


def test_words_of_a_framework_for_an_attention(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("swift sft --model arch:llama --tuner_type lora --attn_impl flash_attn\n")
    assert read_recipe(script).get("attn_implementation") == "flash_attention_2"


def test_a_name_that_the_users_own_code_may_register_is_left_alone() -> None:
    entries = {"model": "m", "template": "chatmll"}
    assert [remark.names for remark in remarks_of("ms-swift", entries)] == [("template",)]
    assert not list(remarks_of("ms-swift", {**entries, "external_plugins": ["mine.py"]}))


def test_remarks_of_a_format_are_its_own_and_those_of_all() -> None:
    kinds = {
        remark.names for remark in remarks_of("TRL", {"bf16": True, "fp16": True, "lora_r": 8})
    }
    assert kinds == {("lora_r",), ("fp16", "bf16")}


_LLAMAFACTORY = {"stage": "sft", "do_train": True, "dataset": "mine", "learning_rate": 1e-4}
_AXOLOTL = {"base_model": "m", "adapter": "lora"}


@pytest.mark.parametrize(
    ("name", "entries", "healthy", "said"),
    [
        ("LLaMA-Factory", {**_LLAMAFACTORY, "eval_strategy": "steps"}, {"val_size": 0.1},
         "eval_dataset be provided"),
        ("LLaMA-Factory", {**_LLAMAFACTORY, "val_size": "0.1", "eval_dataset": "a"},
         {"val_size": 0}, "Cannot specify `val_size`"),
        ("LLaMA-Factory", {**_LLAMAFACTORY, "stage": "ppo"}, {"reward_model": "r"},
         "`reward_model` is necessary"),
        ("LLaMA-Factory", {**_LLAMAFACTORY, "quantization_bit": 4, "pissa_init": "true"},
         {"pissa_init": False}, "PiSSA"),
        ("LLaMA-Factory", {**_LLAMAFACTORY, "streaming": True}, {"max_steps": 10}, "max_steps"),
        ("LLaMA-Factory", {"quantization_bit": 4, "adapter_name_or_path": "a", "export_dir": "b"},
         {"quantization_bit": None}, "Cannot merge adapters"),
        ("LLaMA-Factory",
         {"export_quantization_bit": 4, "adapter_name_or_path": "a", "export_dir": "b"},
         {"adapter_name_or_path": None}, "merge adapters before quantizing"),
        ("LLaMA-Factory", {**_LLAMAFACTORY, "do_train": False, "num_train_epochs": 1},
         {"do_train": True}, "trains nothing"),
        ("axolotl", {**_AXOLOTL, "val_set_size": 0, "eval_steps": 10}, {"val_set_size": 0.1},
         "val_set_size == 0"),
        ("axolotl", {**_AXOLOTL, "val_set_size": 0.1, "test_datasets": [{"path": "d"}]},
         {"val_set_size": 0.0}, "test_datasets"),
        ("axolotl", {**_AXOLOTL, "adapter": "lorra"}, {"adapter": "lora"}, "not built in"),
        ("axolotl", {**_AXOLOTL, "adapter": "qlora", "load_in_4bit": True, "merge_lora": True},
         {"merge_lora": False}, "Can't merge qlora"),
        ("ms-swift", {"model": "m", "eval_strategy": "steps"}, {"split_dataset_ratio": "0.01"},
         "evaluates nothing"),
        ("ms-swift", {"model": "m", "quant_method": "bnb", "quant_bits": "3"},
         {"quant_method": "hqq"}, "bnb not support quant_bits"),
        ("ms-swift", {"model": "m", "learning_rate": "1e-4", "streaming": "true"},
         {"max_steps": "100"}, "max_steps has to be specified"),
    ],
)  # fmt: skip
def test_entries_that_do_not_go_together(
    name: str, entries: dict[str, object], healthy: dict[str, object], said: str
) -> None:
    (remark,) = framework_named(name).remarks(entries)
    assert said in remark.what and remark.names[0] in entries
    assert not list(framework_named(name).remarks({**entries, **healthy}))


def test_paths_count_as_missing_where_their_folder_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saves" / "first").mkdir(parents=True)
    (tmp_path / "ds.json").write_text("{}")
    entries = {
        "adapters": [
            "saves/frist",
            "saves/first",
            "org/name",
            "/absent/here",
            "name",
            "saves/qwen2.5-7b",
        ],  # may be a repository of an owner called saves
        "dataset": ["saves/rows.jsonl#500", "https://host/rows"],
        "deepspeed": "ds.json",
    }
    found = absent_paths(framework_named("ms-swift").paths(entries), [Path()], [])
    assert [(one.entry, one.path, one.near) for one in found] == [
        ("adapters", "saves/frist", "saves/first"), ("dataset", "saves/rows.jsonl", ""),
    ]  # fmt: skip


def test_a_path_that_a_step_before_makes_or_a_repository_has_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of axolotl's data sets is the file that nothing makes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("")
    sets = [
        {"path": "data/made.jsonl"},
        {"path": "json", "data_files": ["data/part-*.jsonl", "data/test.jsonl"]},
        {"path": "owner/repository", "data_files": "data/rows.parquet"},
    ]
    paths = list(framework_named("axolotl").paths({"datasets": sets}))
    (tmp_path / "set_up.sh").write_text("axolotl train --data data/made.jsonl data/test.jsonl\n")

    def missing() -> list[tuple[str, str]]:
        found = absent_paths(paths, [Path()], [], ["set_up.sh"])
        return [(one.path, one.near) for one in found]

    assert missing() == [("data/made.jsonl", ""), ("data/test.jsonl", "")]
    (tmp_path / "prepare.sh").write_text("python prepare.py --out ./data/made.jsonl\n")
    assert missing() == [("data/test.jsonl", "")]


def test_a_dataset_that_no_file_registers_is_named_with_the_one_that_was_meant(
    tmp_path: Path,
) -> None:
    """Only where the file is here; a name of several is changed among the others."""
    text = _BOTH.replace("bf16: true\n", "dataset: one,tow\ndo_train: true\n")
    assert "LD582" not in found(tmp_path, text)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"one": {}, "two": {}}')
    finding = found(tmp_path, text)["LD582"]
    assert (finding.severity, finding.location.line) == ("error", 7)
    assert [edit.value for edit in finding.fixes[0].edits] == ["one,two"]


@pytest.mark.skipif("qwen2_vl" not in (known_architectures() or ()), reason="no Qwen2-VL here")
@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        # The folder's limit, 1003520 pixels of 28 × 28 for a token; ms-swift's own; LLaMA-Factory's
        # default of 768 × 768.
        ("run.sh", "swift sft --model {} --tuner_type lora --max_length 1024\n", "1280"),
        ("run.sh", "MAX_PIXELS=602112 swift sft --model {} --tuner_type lora --max_length 1024\n",
         ""),
        ("set_up.yaml", "model_name_or_path: {}\nstage: sft\nlora_target: all\ntemplate: qwen2_vl\n"
         "cutoff_len: 512\n", "752"),
        ("set_up.yaml", "model_name_or_path: {}\nstage: sft\nlora_target: all\ntemplate: qwen2_vl\n"
         "cutoff_len: 512\nimage_max_pixels: 262144\n", ""),
    ],
    ids=["of-the-folder", "of-ms-swift", "of-llamafactory", "set-in-llamafactory"],
)  # fmt: skip
def test_the_worst_image_is_that_of_the_smallest_limit(
    name: str, text: str, tokens: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text.format(Path(__file__).parent / "folders" / "images_by_pixels"))
    diagnosis = lora_doctor.check(path, depth="static")
    said = [one.message for one in diagnosis.findings if one.rule == "LD584"]
    assert [f"takes {tokens} tokens" in one for one in said] == ([True] if tokens else [])


@pytest.mark.skipif("exclude_modules" not in (config_fields("LORA") or ()), reason="older PEFT")
def test_the_vision_tower_that_a_framework_freezes_gets_no_adapters(tmp_path: Path) -> None:
    """ms-swift leaves it out of ``all-linear``; names of layers are taken as they are."""
    script = tmp_path / "run.sh"

    def excluded(options: str) -> str:
        script.write_text(f"swift sft --model arch:llama --tuner_type lora {options}\n")
        return str(read_recipe(script).get("exclude_modules") or "")

    assert "vision_tower" in excluded("") and "language_model" not in excluded("")
    assert "vision_tower" not in excluded("--freeze_vit false")
    assert "language_model" in excluded("--freeze_llm true --freeze_vit maybe")
    assert excluded("--target_modules q_proj v_proj") == ""


def test_arguments_of_other_commands_of_a_framework_are_known(tmp_path: Path) -> None:
    text = "trl grpo --model_name_or_path arch:llama --use_peft --reward_funcs accuracy_reward\n"
    assert "LD530" not in found(tmp_path, text, "grpo.sh")
    text = "swift export --model arch:llama --adapters mine --merge_lora true\n"
    assert "LD530" not in found(tmp_path, text, "merge.sh")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("chatlm", ["chatml"]),  # swapped letters, which difflib takes for two mistakes
        ("qwen2_v", ["qwen2_vl"]),
        ("chatglm", ["chatglm4", "chatglm3"]),  # none is nearer: a person says which
        ("default", []),
    ],
)
def test_a_value_that_may_have_been_meant(written: str, meant: list[str]) -> None:
    names = ("chatglm3", "chatglm4", "chatml", "qwen2", "qwen2_vl")
    assert nearest(written, names, 0.85) == meant
