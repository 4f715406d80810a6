"""What starts a script decides what its processes share: shell files, comments, accelerate's
config. Each is read beside the script, and none is run."""

from __future__ import annotations

from pathlib import Path

import pytest

import lora_doctor
from lora_doctor.recipe.files.launches import launches
from lora_doctor.recipe.program.deepspeed_settings import program_contradictions
from lora_doctor.recipe.program.devices import Sharded, sharded, spread_twice
from lora_doctor.recipe.program.launch import Launch
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.program.reentrant import reentrant_under_ddp
from lora_doctor.static.installed.layer_classes import has_class, layers_of, sources_of

_SCRIPT = """{comment}
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("org/model", {loading})
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))
args = TrainingArguments("out", {arguments})
Trainer(model=model, args=args, train_dataset=[]).train()
"""
_FSDP = (
    "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\n"
    "fsdp_config:\n  fsdp_version: {version}\nnum_processes: 2\n"
)


def script(
    folder: Path, *, comment: str = "", loading: str = "", arguments: str = "", **files: str
) -> Path:
    """A training script with files beside it; ``run_sh`` is ``run.sh``."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    path = folder / "train.py"
    path.write_text(_SCRIPT.format(comment=comment, loading=loading, arguments=arguments))
    return path


def started(path: Path) -> tuple[Launch, ...]:
    return launches(read_setup(path))


def shared(path: Path) -> Sharded | None:
    return sharded(read_setup(path), started(path))


@pytest.mark.parametrize(
    ("command", "processes"),
    [
        ("python train.py", 1),
        ("CUDA_VISIBLE_DEVICES=0,1 python -u train.py --bf16", 1),
        ("torchrun --nproc_per_node=4 train.py", 4),
        ("torchrun --nproc-per-node 2 --nnodes 2 train.py", 4),
        ("torchrun --nproc_per_node gpu train.py", None),
        ("N=8\npython -m torch.distributed.run --nproc_per_node $N \\\n  train.py", 8),
        ("accelerate launch --num_processes 2 train.py", 2),
        ("accelerate launch --enable_cpu_affinity train.py --num_processes 8", None),
        ("accelerate launch --cpu --num_processes 2 train.py", 1),
        ("accelerate launch --config_file one.yaml --num_processes 2 train.py", 1),
        ("accelerate launch --config_file two.yaml train.py", 2),
        ("deepspeed --num_gpus=2 train.py --deepspeed zero2.json", 2),
        ("deepspeed train.py", None),
        ("torchrun --nproc_per_node 4 ./train.py", 4),
        ("accelerate launch --num_processes 2 -m train", 2),
    ],
)
def test_the_number_of_processes_is_the_launchers(
    tmp_path: Path, command: str, processes: int | None
) -> None:
    """A number that only the machine knows is not guessed."""
    (tmp_path / "one.yaml").write_text("distributed_type: 'NO'\nnum_processes: 1\n")
    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    (found,) = started(script(tmp_path, run_sh=f"#!/bin/bash\n{command}\n"))
    assert found.processes == processes
    assert found.certain


@pytest.mark.parametrize(
    "text",
    [
        "torchrun --nproc_per_node 4 other.py",  # another script
        "torchrun --nproc_per_node 4 sub/train.py",  # another folder's
        "# torchrun --nproc_per_node 4 train.py",
        "echo done",
        "git add train.py",
        "torchrun --nproc_per_node 4 'unclosed train.py",
    ],
)
def test_commands_that_do_not_start_the_script_say_nothing(tmp_path: Path, text: str) -> None:
    assert started(script(tmp_path, run_sh=text)) == ()


def test_a_script_in_another_folder_is_found_from_where_the_shell_file_lies(tmp_path: Path) -> None:
    """``scripts/run.sh`` is started from the root of the repository, and names ``src/train.py``."""
    (tmp_path / "src").mkdir()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "run.sh").write_text("torchrun --nproc_per_node 2 src/train.py\n")
    (found,) = started(script(tmp_path / "src"))
    assert found.several


def test_a_comment_and_a_config_beside_are_less_than_certain(tmp_path: Path) -> None:
    """A docstring often shows one of several ways; a shell file outweighs it."""
    comment = (
        '"""Train.\n\n    accelerate launch --multi_gpu \\\n        --num_processes 2 train.py\n"""'
    )
    (found,) = started(script(tmp_path, comment=comment))
    assert (found.processes, found.certain) == (2, False)
    path = script(tmp_path, a_yaml=_FSDP.format(version=1))
    (found,) = started(path)
    assert (found.fsdp, found.certain) == (1, False)
    (tmp_path / "b.yaml").write_text(_FSDP.format(version=2))
    assert started(path) == (), "two configs: nobody knows which"
    path = script(tmp_path, comment=comment, run_sh="python train.py\n")
    assert [one.processes for one in started(path)] == [1]


def test_weights_are_sharded_by_arguments_or_by_the_launcher(tmp_path: Path) -> None:
    """FSDP's version and ZeRO's stage decide what can be sharded."""
    command = "accelerate launch --config_file fsdp.yaml train.py\n"
    for version in (1, 2):
        path = script(tmp_path, run_sh=command, fsdp_yaml=_FSDP.format(version=version))
        found = shared(path)
        assert found is not None
        assert (found.by, found.version) == ("FSDP", version)
    arguments = 'fsdp="full_shard", fsdp_config={"version": 1}'
    found = shared(script(tmp_path, arguments=arguments))
    assert found is not None
    assert (found.version, found.place.line) == (1, 7)
    (tmp_path / "run.sh").unlink()
    (tmp_path / "fsdp.yaml").unlink()
    zero = 'deepspeed={"zero_optimization": {"stage": STAGE}}'
    found = shared(script(tmp_path, arguments=zero.replace("STAGE", "3")))
    assert found is not None
    assert found.by == "ZeRO-3"
    assert shared(script(tmp_path, arguments=zero.replace("STAGE", "2"))) is None
    assert shared(script(tmp_path)) is None


@pytest.mark.parametrize(
    ("command", "loading", "found"),
    [
        ("torchrun --nproc_per_node 2 train.py", 'device_map="auto"', True),
        ("torchrun --nproc_per_node 1 train.py", 'device_map="auto"', False),
        ("python train.py", 'device_map="auto"', False),
        ("torchrun --nproc_per_node 2 train.py", 'device_map={"": 0}', False),
        ("torchrun --nproc_per_node 2 train.py", "device_map=None", False),
        ("torchrun --nproc_per_node $GPUS train.py", 'device_map="auto"', False),
    ],
)
def test_a_device_map_contradicts_several_processes(
    tmp_path: Path, command: str, loading: str, found: bool
) -> None:
    path = script(tmp_path, loading=loading, run_sh=f"{command}\n")
    assert (spread_twice(read_setup(path), started(path)) is not None) is found


def test_where_another_command_starts_one_process_it_may_be_meant(tmp_path: Path) -> None:
    path = script(
        tmp_path, loading='device_map="auto"', a_sh="torchrun --nproc_per_node 2 train.py\n"
    )
    certain = []
    for _ in range(2):
        found = spread_twice(read_setup(path), started(path))
        assert found is not None
        certain.append(found.certain)
        (tmp_path / "b.sh").write_text("python train.py\n")
    assert certain == [True, False]


@pytest.mark.parametrize(
    ("other", "sure"),
    [
        ("python train.py", False),
        ("accelerate launch --config_file fsdp.yaml train.py --fast", True),
        ("torchrun --nproc_per_node 2 train.py", False),
    ],
)
def test_weights_may_not_be_sharded_where_another_command_shards_none(
    tmp_path: Path, other: str, sure: bool
) -> None:
    """LD712 says less then: nobody knows which of them is used."""
    path = script(
        tmp_path,
        a_sh="accelerate launch --config_file fsdp.yaml train.py\n",
        b_sh=f"{other}\n",
        fsdp_yaml=_FSDP.format(version=1),
    )
    found = shared(path)
    assert found is not None
    assert found.certain is sure


def test_a_device_map_that_depends_on_the_processes_contradicts_nothing(tmp_path: Path) -> None:
    """The idiom of Alpaca-LoRA, and a variable that is the same for all."""
    path = script(
        tmp_path, loading="device_map=chosen", a_sh="torchrun --nproc_per_node 2 train.py\n"
    )
    text = path.read_text()
    idiom = (
        "import os\nchosen = 'auto'\nif int(os.environ.get('WORLD_SIZE', 1)) > 1:\n"
        "    chosen = {'': int(os.environ.get('LOCAL_RANK') or 0)}\n"
    )
    for before, found in ((idiom, False), ("chosen = 'auto'\n", True)):
        path.write_text(before + text)
        assert (spread_twice(read_setup(path), started(path)) is not None) is found


@pytest.mark.parametrize(("given", "found"), [("'ds.json'", True), ("os.environ.get('DS')", False)])
def test_deepspeed_that_may_be_none_contradicts_nothing(
    tmp_path: Path, given: str, found: bool
) -> None:
    path = script(tmp_path, loading='device_map="auto"', arguments=f"deepspeed={given}")
    path.write_text(f"import os\n{path.read_text()}")
    assert (spread_twice(read_setup(path)) is not None) is found


_LOOP = """
for batch in []:
    model(**batch).loss.backward()
"""


@pytest.mark.parametrize(
    ("classes", "policy", "loop", "found"),
    [
        (("BertLayer",), "TRANSFORMER_BASED_WRAP", _LOOP, ["error"]),
        (("BertLayer",), "SIZE_BASED_WRAP", _LOOP, []),  # accelerate reads no names then
        (("BertLayer",), "SIZE_BASED_WRAP", "", ["error"]),  # PEFT does, for the Trainer
        (("LlamaDecoderLayer", "BertLayer"), "TRANSFORMER_BASED_WRAP", "", []),  # two models
    ],
)
def test_the_classes_that_fsdp_wraps_are_those_that_somebody_reads(
    tmp_path: Path, classes: tuple[str, ...], policy: str, loop: str, found: list[str]
) -> None:
    """LD574, with a command for each of the classes."""
    for name in classes:
        (tmp_path / f"{name}.yaml").write_text(
            f"distributed_type: FSDP\nfsdp_config:\n  fsdp_auto_wrap_policy: {policy}\n"
            f"  fsdp_transformer_layer_cls_to_wrap: {name}\nnum_processes: 2\n"
        )
        run = f"accelerate launch --config_file {name}.yaml train.py\n"
        (tmp_path / f"{name}.sh").write_text(run)
    text = _SCRIPT.format(comment="", loading="", arguments="").replace(
        "org/model", str(Path(__file__).parent / "launched" / "llama")
    )
    path = tmp_path / "train.py"
    path.write_text(text.partition("args = ")[0] + loop if loop else text)
    diagnosis = lora_doctor.check(path, depth="static", select=["LD574"])
    assert [one.severity for one in diagnosis.findings] == found


_REENTRANT = 'gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}'


@pytest.mark.parametrize(
    ("command", "arguments", "found"),
    [
        ("torchrun --nproc_per_node 2 train.py", _REENTRANT, True),
        ("torchrun --nproc_per_node 1 train.py", _REENTRANT, False),
        (
            "torchrun --nproc_per_node 2 train.py",
            f"{_REENTRANT}, ddp_find_unused_parameters=False",
            False,
        ),
        ("torchrun --nproc_per_node 2 train.py", _REENTRANT.replace("{", "{**other, "), False),
        (
            "torchrun --nproc_per_node 2 train.py",
            _REENTRANT.replace('"use_reentrant": True', '"use_reentrant": False'),
            False,
        ),
        ("torchrun --nproc_per_node 2 train.py", f'{_REENTRANT}, deepspeed="zero2.json"', False),
        ("deepspeed --num_gpus 2 train.py", _REENTRANT, False),
        ("accelerate launch --use_fsdp --num_processes 2 train.py", _REENTRANT, False),
        ("torchrun --nproc_per_node 2 train.py", "gradient_checkpointing=False", False),
    ],
)
def test_reentrant_checkpointing_contradicts_ddp(
    tmp_path: Path, command: str, arguments: str, found: bool
) -> None:
    """As a Trainer of two processes does it: `Expected to mark a variable ready only once`."""
    path = script(tmp_path, arguments=arguments, run_sh=f"{command}\n")
    assert (reentrant_under_ddp(read_setup(path), started(path)) is not None) is found


@pytest.mark.parametrize(
    ("other", "sure"),
    [
        ("python train.py", False),
        ("torchrun --nproc_per_node 4 train.py", True),
        ("deepspeed --num_gpus 2 train.py", False),
        ("# python train.py", True),
    ],
)
def test_reentrant_checkpointing_is_less_certain_where_another_command_takes_no_ddp(
    tmp_path: Path, other: str, sure: bool
) -> None:
    run = "torchrun --nproc_per_node 2 train.py\n"
    path = script(tmp_path, arguments=_REENTRANT, a_sh=run, b_sh=f"{other}\n")
    found = reentrant_under_ddp(read_setup(path), started(path))
    assert found is not None
    assert found.certain is sure


@pytest.mark.parametrize(
    ("types", "name", "found"),
    [
        (["llama"], "LlamaDecoderLayer", True),
        (["llama"], "MistralDecoderLayer", False),
        (["llava", "llama", "clip_vision_model"], "LlamaDecoderLayer", None),  # no such folder
        (["gpt_neox", "llama"], "GPTNeoXLayer", True),
        (["nothing-of-the-kind"], "LlamaDecoderLayer", None),
        (["../llama"], "LlamaDecoderLayer", None),
    ],
)
def test_classes_are_looked_up_in_the_installed_transformers(
    types: list[str], name: str, found: bool | None
) -> None:
    """LD574 judges what it can read, and nothing else."""
    sources = sources_of(types)
    assert (None if sources is None else has_class(sources, name)) is found
    assert sources is None or layers_of(sources)


_DEEPSPEED = (
    "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\ndeepspeed_config:\n"
    "  zero_stage: 2\n{more}\nmixed_precision: {dtype}\nnum_processes: 2\n"
)
_ACCELERATE = "accelerate launch --config_file ds.yaml train.py"


@pytest.mark.parametrize(
    ("command", "more", "dtype", "arguments", "found"),
    [
        (_ACCELERATE, "  gradient_accumulation_steps: 1", "'no'", "gradient_accumulation_steps=4",
         ["gradient_accumulation_steps"]),
        (_ACCELERATE, "  gradient_accumulation_steps: '4'", "'no'", "gradient_accumulation_steps=4",
         []),
        (_ACCELERATE, "  gradient_accumulation_steps: auto", "'no'",
         "gradient_accumulation_steps=4", []),
        (_ACCELERATE, "  gradient_accumulation_steps: 1", "'no'",
         "gradient_accumulation_steps=STEPS", []),
        (_ACCELERATE, "  gradient_accumulation_steps: 2", "'no'", "",
         ["gradient_accumulation_steps"]),
        (_ACCELERATE, "", "bf16", "", ["bf16.enabled"]),
        (_ACCELERATE, "", "bf16", "bf16=True", []),
        (_ACCELERATE, "", "bf16", "fp16=True", []),
        (_ACCELERATE, "", "'no'", "bf16=True", []),
        (_ACCELERATE.replace("train.py", "--mixed_precision no train.py"), "", "bf16", "", []),
        ("torchrun --nproc_per_node 2 train.py", "  gradient_accumulation_steps: 2", "bf16", "",
         []),
        ("torchrun --nproc_per_node 2 train.py", "", "'no'",
         'deepspeed={"gradient_accumulation_steps": "8"}, gradient_accumulation_steps=8',
         ["gradient_accumulation_steps"]),
        (_ACCELERATE, "  gradient_accumulation_steps: 2", "'no'", "deepspeed=CONFIG", []),
    ],
)  # fmt: skip
def test_deepspeed_and_the_trainer_are_told_the_same(
    tmp_path: Path, command: str, more: str, dtype: str, arguments: str, found: list[str]
) -> None:
    """LD711. transformers 5.23 with accelerate 1.15 refuses each of those that are found, before
    the first step, and none of the others whose values are known."""
    path = script(
        tmp_path,
        arguments=arguments,
        run_sh=f"{command}\n",
        ds_yaml=_DEEPSPEED.format(more=more, dtype=dtype),
    )
    said = program_contradictions(read_setup(path), started(path))
    assert ([] if said is None else [one.name for one in said.found]) == found


_MERGED = "merged = model.merge_and_unload()\n"


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("", _MERGED, ["error"]),
        ("", "if rank == 0:\n    " + _MERGED, []),  # nobody knows whether it is called
        (_MERGED, "", []),  # and what is trained then has no adapter
        ("", "with deepspeed.zero.GatheredParameters(model.parameters()):\n    " + _MERGED, []),
        ("", "other = get_peft_model(base, config)\nother.merge_and_unload()\n", []),
    ],
)
def test_what_trained_under_zero3_is_merged_in_another_process(
    tmp_path: Path, before: str, after: str, found: list[str]
) -> None:
    """LD635 is about the model that has been trained, where its weights are."""
    path = script(tmp_path, arguments='deepspeed={"zero_optimization": {"stage": 3}}')
    text = path.read_text().replace("args =", f"{before}args =")
    path.write_text(text + after)
    diagnosis = lora_doctor.check(path, depth="static", select=["LD635"])
    assert [one.severity for one in diagnosis.findings] == found


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("", "", ["error"]),
        ("num_processes: 2", "num_processes: 1", []),
        ("FULL_SHARD", "NO_SHARD", []),
        ("orig_params: true", "orig_params: false", []),
    ],
)
def test_dora_is_cut_by_several_processes(
    tmp_path: Path, old: str, new: str, found: list[str]
) -> None:
    """LD553: one process, and FSDP that shards nothing, leave adapters their shapes."""
    for one in (Path(__file__).parent / "launched" / "dora_under_fsdp").iterdir():
        (tmp_path / one.name).write_text(one.read_text().replace(old, new))
    diagnosis = lora_doctor.check(tmp_path / "train.py", depth="static", select=["LD553"])
    assert [one.severity for one in diagnosis.findings] == found
