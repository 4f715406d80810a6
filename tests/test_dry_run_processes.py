"""Several processes in a dry run: one diagnosis of all of them. Two really run in one test here;
set-ups with accelerate, FSDP and shards that are saved are run by `nox -s dry_run`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_doctor.dry_run.acts import processes, resuming, sharding, small_models
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.saved_adapters import plain_name, read_adapter
from lora_doctor.dry_run.captured import Captured
from lora_doctor.dry_run.several import (
    is_of_another,
    of_first_rank,
    otherwise_shared,
    processes_of,
    waited_for_us,
)
from lora_doctor.guest.replacing import Replacements
from lora_doctor.guest.session import Session
from lora_doctor.results.dry_run import Resumed, ScriptError
from lora_doctor.results.processes import Processes
from lora_doctor.rules._dry_run_script import DDP_LOOP, MODEL
from tests.test_dry_run import dry_run

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def record(kind: str, process: int, **values: Any) -> Mapping[str, Any]:
    return {"kind": kind, "time": 0.0, "pid": process, **values}


def started(process: int, rank: int, **variables: str) -> Mapping[str, Any]:
    return record("rank", process, rank=rank, variables={"WORLD_SIZE": "2", **variables})


def failed(process: int, kind: str, message: str) -> Mapping[str, Any]:
    own = [{"file": f"/there/{process}.py", "line": process, "function": ""}]
    return record("error", process, type=kind, message=message, own=own)


def of(*records: Mapping[str, Any]) -> Processes:
    found = processes_of(records, lambda file: file)
    assert found is not None
    return found


def test_a_rank_that_fails_while_the_other_waits_is_the_finding(tmp_path: Path) -> None:
    """Rank 0 waits in DDP and is told that the connection was closed; all are ended."""
    (tmp_path / "place").mkdir()
    script = MODEL + DDP_LOOP.replace(
        "    optimizer.step()\n",
        "    optimizer.step()\n    if rank == 1:\n        raise KeyError('no such row')\n",
    )
    (tmp_path / "place" / "train.py").write_text(script)
    report = dry_run(tmp_path / "place", sys.executable, *TORCHRUN, "train.py", code=1)
    assert [one["rule"] for one in report["findings"]] == ["LD002"]
    line = next(n for n, text in enumerate(script.splitlines(), 1) if "no such row" in text)
    assert report["findings"][0]["location"]["line"] == line
    found = report["dry_run"]["processes"]
    assert (found["asked"], found["met"], found["started"]) == (2, 2, 2)
    assert (found["ran_type"], found["backend"]) == ("DDP", "gloo")
    assert {one["rank"]: one["of_another"] for one in found["errors"]}[1] is False
    assert report["verification"]["before"]["outcome"] == "passed", "judged once, by the first rank"


def test_the_small_model_has_weights_whichever_process_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`TrainingArguments` come before the model: transformers from 5.19 on lets the first process
    of a group save, and any of them may be the one that makes the small model."""
    pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    if hasattr(LlamaForCausalLM, "should_save_on_this_rank"):
        monkeypatch.setattr(
            LlamaForCausalLM, "should_save_on_this_rank", lambda model, is_main_process: False
        )
    session = Session(tmp_path, "")
    session.models.mkdir()
    config = LlamaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=90)
    folder = small_models.of(Acting(session), LlamaForCausalLM, config).folder
    assert list(folder.glob("model.safetensors")) or list(folder.glob("pytorch_model.bin"))


def test_what_the_first_rank_tells_stands_for_all() -> None:
    records = [
        started(11, 1), started(10, 0), record("train", 11), record("train", 10),
        record("note", 11, note="cpu", text=""), record("model", 9),
    ]  # fmt: skip
    left = of_first_rank(records)
    assert [(one["kind"], one["pid"]) for one in left if one["kind"] != "rank"] == [
        ("train", 10), ("note", 11), ("model", 9),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        ("RuntimeError", "[pair.cc:547] Connection closed by peer [127.0.0.1]:1234", True),
        ("RuntimeError", "Timed out waiting 300000ms for recv operation to complete", True),
        ("torch.distributed.DistBackendError", "NCCL communicator was aborted", True),
        ("KeyError", "'Connection closed by peer'", False),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied", False),
        ("ValueError", "request timed out after 3 s", False),
    ],
)
def test_what_only_says_that_another_process_is_gone(
    kind: str, message: str, expected: bool
) -> None:
    assert is_of_another(failed(1, kind, message)) is expected


def test_nobody_failed_and_one_waits() -> None:
    """`if rank == 0:` around what needs all processes."""
    waiting = failed(10, "RuntimeError", "Connection closed by peer")
    ours = (started(10, 0), started(11, 1), record("group", 10, rank=0, size=2, backend="gloo"))
    assert [one.rank for one in of(*ours, waiting).waiting] == [0]
    assert not of(*ours, waiting, failed(11, "ValueError", "")).waiting


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 4]], 2),
        ([[1, 2], [3, 4]], [[5, 6], [7, 8]], 0),
        ([[1, 2], [3, 4]], [[1, 2], [7, 8]], 0),
        ([[1, 2], [1, 2]], [[1, 2], [1, 2]], 0),  # one batch for ever: to overfit it
        ([[1, 2]], [[1, 2]], 0),
        ([[1, 2], [3, 4]], [], 0),
        ([None, None], [None, None], 0),  # images
    ],
)
def test_batches_that_all_processes_have_in_common(
    first: list[Any], second: list[Any], same: int
) -> None:
    """A loader without a DistributedSampler."""
    ours = (started(10, 0), started(11, 1), record("group", 10, rank=0, size=2, backend="gloo"))
    rows = [
        record("rows", process, rows={} if batch is None else {"input_ids": batch})
        for process, batches in ((10, first), (11, second))
        for batch in batches
    ]
    assert of(*ours, *rows).same_batches == same
    assert not of(*ours, *rows, record("repeated", 11)).same_batches, "by the dry run itself"
    assert of(*ours, *rows, record("mesh", 10, dimensions=1)).same_batches == same
    assert not of(*ours, *rows, record("mesh", 10, dimensions=2)).same_batches, "tensor parallel"


def test_one_process_of_one_is_nothing_to_tell() -> None:
    assert processes_of([record("rank", 1, rank=0, variables={"WORLD_SIZE": "1"})], str) is None
    assert processes_of([record("launcher", 1, processes=1, machines=1, chosen=[],
                                distributed_type="NO")], str) is None  # fmt: skip


def test_what_ran_beside_what_was_asked_for() -> None:
    """FSDP was asked for and DDP ran: nothing is vouched for."""
    group = record("group", 10, rank=0, size=2, backend="gloo")
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    asked = (started(10, 0, **fsdp), started(11, 1, **fsdp), group)
    replicas = record("wrapped", 10, by="DDP", rank=0)
    shards = record("wrapped", 10, by="FSDP2", rank=0, classes={"Layer": 2})
    assert "FSDP2 was requested" in (otherwise_shared(of(*asked, replicas)) or "")
    assert otherwise_shared(of(*asked, shards)) is None
    assert of(*asked, shards).sharded == {"Layer": 2}
    arguments = record("arguments", 10, values={"fsdp": "full_shard"})
    by_default = (started(10, 0), started(11, 1), group, arguments, shards)
    assert otherwise_shared(of(*by_default)) is not None
    read = record("fsdp", 10, version=2, state_dict="FULL_STATE_DICT")
    assert otherwise_shared(of(*by_default, read)) is None
    assert of(*by_default, read).state_dict == "FULL_STATE_DICT"
    assert "did not meet" in (otherwise_shared(of(started(10, 0), started(11, 1))) or "")


def test_the_best_of_what_all_processes_saved_is_told() -> None:
    """Each rank writes to the same file; one that has nothing comes after the one that has all."""
    saved = {"path": "/out", "by": "torch.save", "expected": 8, "partial": [], "error": "",
             "empty": [], "place": None}  # fmt: skip
    found = of(
        started(10, 0), started(11, 1),
        record("saved_adapter", 10, written=True, whole=8, **saved),
        record("saved_adapter", 11, written=True, whole=0, **saved),
    )  # fmt: skip
    assert [one.good for one in found.saved] == [True]


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "module.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "_fsdp_wrapped_module.base_model.model.model.layers.0._fsdp_wrapped_module."
        "_checkpoint_wrapped_module.self_attn.q_proj.lora_A.default.weight",
    ],
)
def test_a_tensor_is_known_by_whatever_name_it_is_saved(name: str) -> None:
    assert plain_name(name) == "model.layers.0.self_attn.q_proj.lora_A.weight"


def test_what_a_file_has_of_an_adapter_is_read_off_its_header(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    assert read_adapter(tmp_path) is None
    part = {"layer.lora_A.weight": torch.zeros(4, 8), "layer.lora_B.weight": torch.zeros(0)}
    safetensors.save_file(part, tmp_path / "adapter_model.safetensors")
    assert read_adapter(tmp_path) == {"layer.lora_A.weight": (4, 8), "layer.lora_B.weight": (0,)}


def test_an_adapter_with_a_name_of_its_own_lies_in_a_folder_of_that_name(tmp_path: Path) -> None:
    """As PEFT saves it: an adapter beside others is no adapter that was lost."""
    safetensors = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "adapter_model.safetensors"
    safetensors.save_file({"base_model.model.q_proj.lora_A.weight": torch.zeros(4, 8)}, file)
    assert read_adapter(tmp_path, "mine") == {"base_model.model.q_proj.lora_A.weight": (4, 8)}
    assert read_adapter(tmp_path) is None
    assert plain_name("base_model.model.q_proj.lora_A.mine.weight", "mine") == (
        plain_name("base_model.model.q_proj.lora_A.weight", "mine")
    )


def test_a_part_of_the_weights_that_is_not_resumed_is_found_in_any_process() -> None:
    """Under FSDP each process holds a part, and the first one's may be as it should be."""
    values = {"step": 3, "loss": 2.0, "resumed_loss": 2.0, "moved": 0.001, "files": [],
              "error": "", "place": None}  # fmt: skip
    found = Captured((
        started(10, 0), started(11, 1),
        record("resumed", 11, apart=0.001, **values), record("resumed", 10, apart=0.0, **values),
    )).resumed()  # fmt: skip
    assert found is not None and not found.same


def test_a_model_of_which_few_processes_are_here_is_not_vouched_for() -> None:
    """Two machines with a process each, of which this is one."""
    one = started(10, 0, LOCAL_RANK="0")
    assert "1 of 2 processes" in (otherwise_shared(of(one)) or "")


@pytest.mark.parametrize(
    ("loss", "apart", "same"), [(2.0, 0.0, True), (2.1, 0.0, False), (2.0, 0.0005, False)]
)
def test_resuming_is_going_on_with_the_same_loss_and_the_same_step(
    loss: float, apart: float, same: bool
) -> None:
    found = Resumed(3, loss=2.0, resumed_loss=loss, moved=0.001, apart=apart)
    assert found.same is same


@pytest.mark.parametrize("named", [True, False])
def test_the_stage_of_zero_is_read_of_the_arguments_or_of_their_file(
    tmp_path: Path, named: bool
) -> None:
    settings = {"zero_optimization": {"stage": 3}}
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    given = str(tmp_path / "ds.json") if named else settings
    arguments = record("arguments", 10, values={"deepspeed": given})
    found = of(started(10, 0), started(11, 1), arguments)
    assert (found.asked_type, found.zero_stage) == ("DeepSpeed", 3)
    assert "DeepSpeed was requested" in (otherwise_shared(replace(found, met=2)) or "")


def test_a_full_state_dict_of_fsdp_1_is_copied_where_its_weights_are_on_a_cpu() -> None:
    """Moved "to the CPU" they would be views of memory that is freed."""
    torch = pytest.importorskip("torch")
    from torch.distributed.fsdp import api

    acting: Any = SimpleNamespace(replaced=Replacements())
    sharding._whole_states(acting, api)
    try:
        config = api.FullStateDictConfig(offload_to_cpu=True, rank0_only=True)
        assert config.offload_to_cpu is torch.cuda.is_available()
        config.offload_to_cpu = True  # as accelerate does before it saves
        assert config.offload_to_cpu is torch.cuda.is_available() and config.rank0_only
    finally:
        acting.replaced.undo()
    assert api.FullStateDictConfig(offload_to_cpu=True).offload_to_cpu


@pytest.mark.parametrize("asked", [{"num_processes": 2}, {"num_processes": 1},
                                   {"num_processes": 2, "config_file": "mine.yaml"},
                                   {"num_processes": 2, "cpu": True}])  # fmt: skip
def test_accelerate_started_as_a_module_starts_as_many_as_with_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """`python -m accelerate.commands.launch` is no module that is imported: what it calls before it
    starts one process is acted on."""
    launched: list[Any] = []
    program = SimpleNamespace(
        multi_gpu_launcher=launched.append, default_config_file=str(tmp_path / "none.yaml")
    )
    monkeypatch.setitem(sys.modules, "__main__", program)  # type: ignore[arg-type]
    monkeypatch.setattr(processes, "_no_gpu", lambda: True)
    library: Any = SimpleNamespace(prepare_simple_launcher_cmd_env=lambda args: "one process")
    acting = Acting(Session(tmp_path, ""))
    acting.session.records.mkdir()
    processes._simple_launcher(acting, library)
    args = SimpleNamespace(**asked)
    if asked == {"num_processes": 2}:
        with pytest.raises(SystemExit) as ended:
            library.prepare_simple_launcher_cmd_env(args)
        assert ended.value.code == 0 and launched == [args] and args.multi_gpu
    else:
        assert library.prepare_simple_launcher_cmd_env(args) == "one process" and not launched
    assert len(acting.seen("launcher")) == 1


@pytest.mark.parametrize(
    ("chosen", "distributed", "expected"),
    [
        (["cpu"], "", "--cpu"),
        ([], "NO", "distributed_type: NO"),
        ([], "", ""),
        (["multi_gpu"], "MULTI_GPU", ""),
        ([], "MULTI_CPU", ""),
    ],
)
def test_why_a_launcher_starts_one_process_for_two(
    chosen: list[str], distributed: str, expected: str
) -> None:
    """Its own choice is a finding; want of GPUs here leaves the question open."""
    found = of(record("launcher", 9, processes=2, machines=1, chosen=chosen,
                      distributed_type=distributed))  # fmt: skip
    assert found.simple_launcher == expected
    assert (otherwise_shared(found) is None) == bool(expected)


@pytest.mark.parametrize(("seconds", "expected"), [(20.0, False), (280.0, True)])
def test_who_gave_up_on_a_process_that_we_kept_is_no_finding(
    seconds: float, expected: bool
) -> None:
    records = [record("adapted", 10), {**record("contract", 10), "time": seconds}]
    gave_up = ScriptError("RuntimeError", "Timed out waiting 300000ms for recv operation")
    assert waited_for_us(records, gave_up) is expected
    assert not waited_for_us(records, ScriptError("RuntimeError", "shapes do not fit"))


@pytest.mark.parametrize("empty", [True, False])
def test_a_model_that_is_saved_without_values_is_told(tmp_path: Path, empty: bool) -> None:
    """LD635: as ZeRO-3 leaves weights outside of forward and backward. A file that an earlier run
    has left in the user's folder is none of this run's."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from lora_doctor.dry_run.acts.saved_models import tell_empty

    session = SimpleNamespace(folder=tmp_path / "run", outputs=tmp_path / "run" / "outputs")
    told: list[dict[str, Any]] = []
    journal = SimpleNamespace(tell=lambda kind, **values: told.append({"kind": kind, **values}))
    acting: Any = SimpleNamespace(session=session, journal=journal, in_contract=False)
    weights = {"lm_head.weight": torch.zeros(0 if empty else 2), "norm.weight": torch.ones(2)}
    own = tmp_path / "merged"
    written = Path(f"{session.outputs}{own}")
    for folder in (own, written):
        folder.mkdir(parents=True)
        save_file({"lm_head.weight": torch.zeros(0)} if folder == own else weights,
                  str(folder / "model.safetensors"))  # fmt: skip
    tell_empty(acting, object(), str(own))
    assert [(one["empty"], one["tensors"], one["path"]) for one in told] == (
        [(1, 2, str(own))] if empty else []
    )
    (written / "model.safetensors").unlink()
    written.rmdir()
    told.clear()
    tell_empty(acting, object(), str(own))
    assert told == []
    said = of(started(10, 0), started(11, 1), record(
        "saved_empty", 10, path="merged", model_class="Llama", tensors=2, empty=1, names=["a"],
        place=None,
    ))  # fmt: skip
    assert [(one.empty, one.model_class) for one in said.saved_empty] == [(1, "Llama")]


@pytest.mark.parametrize("deepspeed", [True, False])
def test_a_model_is_taken_from_deepspeed_before_a_run_is_resumed(deepspeed: bool) -> None:
    """The Trainer makes an engine of a model that has none; of its own one nothing is left when it
    trains once more."""
    ended: list[str] = []
    engine = SimpleNamespace(destroy=lambda: ended.append("engine"))
    trainer = SimpleNamespace(is_deepspeed_enabled=deepspeed, model="model", model_wrapped=engine)
    resuming._let_go(trainer)
    assert (trainer.model_wrapped == "model", ended == ["engine"]) == (deepspeed, deepspeed)
