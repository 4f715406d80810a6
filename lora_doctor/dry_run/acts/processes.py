"""Processes that train together: which one this is, and a process group that this machine can
have. Without a GPU they talk by gloo, and accelerate is told that they run on CPUs."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting

#: Variables by which launchers say what the processes are to do together; none holds a secret.
_TOLD = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE", "FSDP_VERSION", "FSDP_AUTO_WRAP_POLICY",
    "FSDP_TRANSFORMER_CLS_TO_WRAP", "FSDP_MIN_NUM_PARAMS", "FSDP_STATE_DICT_TYPE",
    "FSDP_USE_ORIG_PARAMS", "FSDP_SHARDING_STRATEGY", "FSDP_RESHARD_AFTER_FORWARD",
)  # fmt: skip
#: Seconds that a process waits for the others: the first one runs the training contract meanwhile.
PATIENCE = 300.0
_PARTING_SECONDS = 20.0


def prepare(acting: Acting) -> None:
    """Tell what the launcher says, and act on torch's process groups and on accelerate."""
    if os.environ.get("WORLD_SIZE", "").isdigit() and os.environ.get("RANK", "").isdigit():
        told = {name: os.environ[name] for name in _TOLD if name in os.environ}
        acting.journal.tell("rank", variables=told, rank=int(os.environ["RANK"]))
    acting.before_end = part
    acting.after("torch.distributed.distributed_c10d", lambda m: _groups(acting, m))
    acting.after("torch.distributed.device_mesh", lambda m: _meshes(acting, m))
    acting.after("accelerate.state", lambda m: _accelerate(acting, m))
    acting.after("accelerate.commands.launch", lambda m: _launcher(acting, m))
    acting.after("accelerate.utils.launch", lambda m: _simple_launcher(acting, m))


def rank() -> int:
    """Which process this is, of those that train together; 0 where it is alone."""
    group = _group()
    if group is not None:
        return int(group.get_rank())
    text = os.environ.get("RANK", "")
    return int(text) if text.isdigit() else 0


def size() -> int:
    """How many processes train together with this one, itself included."""
    group = _group()
    return 1 if group is None else int(group.get_world_size())


def part() -> None:
    """Leave the process group together, before this process is ended."""
    group = _group()
    if group is None:
        return
    with contextlib.suppress(Exception):  # whatever has become of the others, this one ends
        group.monitored_barrier(timeout=datetime.timedelta(seconds=_PARTING_SECONDS))
    with contextlib.suppress(Exception):
        group.destroy_process_group()


def _group() -> Any:
    """``torch.distributed``, where this process is in a group."""
    found = sys.modules.get("torch.distributed")
    available = getattr(found, "is_available", None)
    if found is None or available is None or not available():
        return None
    return found if found.is_initialized() else None


def _no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _groups(acting: Acting, module: ModuleType) -> None:
    def init(original: Any, *arguments: Any, **named: Any) -> Any:
        if arguments:
            named["backend"], arguments = arguments[0], arguments[1:]
        if _no_gpu():
            if "nccl" in str(named.get("backend") or "nccl"):
                named["backend"] = "gloo"
            named.pop("device_id", None)
        if len(arguments) < 2:
            asked = named.get("timeout")
            ours = datetime.timedelta(seconds=PATIENCE)
            named["timeout"] = ours if asked is None else min(asked, ours)
        result = original(named.pop("backend", None), *arguments, **named)
        acting.journal.tell(
            "group",
            rank=module.get_rank(),
            size=module.get_world_size(),
            backend=str(module.get_backend()),
        )
        return result

    def barrier(original: Any, *arguments: Any, **named: Any) -> Any:
        if _no_gpu():
            named.pop("device_ids", None)
        return original(*arguments, **named)

    acting.replaced.around(module, "init_process_group", init)
    acting.replaced.around(module, "barrier", barrier)


def _meshes(acting: Acting, module: ModuleType) -> None:
    if "init_device_mesh" not in vars(module):
        return

    def init(original: Any, device_type: Any, *arguments: Any, **named: Any) -> Any:
        if device_type == "cuda" and _no_gpu():
            device_type = "cpu"
        mesh = original(device_type, *arguments, **named)
        acting.journal.tell("mesh", dimensions=int(mesh.ndim))
        return mesh

    acting.replaced.around(module, "init_device_mesh", init)


def _accelerate(acting: Acting, module: ModuleType) -> None:
    """On a machine without a GPU accelerate starts no process group unless it is told ``cpu``, and
    never takes FSDP: what it would do with GPUs is done."""

    def partial(original: Any, state: Any, *arguments: Any, **named: Any) -> None:
        if not state.initialized and _no_gpu() and not is_true("ACCELERATE_USE_DEEPSPEED"):
            named["cpu"], arguments = True, arguments[1:]
        original(state, *arguments, **named)

    def whole(original: Any, state: Any, *arguments: Any, **named: Any) -> None:
        original(state, *arguments, **named)
        plugin = named.get("fsdp_plugin")
        if plugin is not None:  # which FSDP it is by default depends on the release
            kind = getattr(plugin, "state_dict_type", None)
            acting.journal.tell(
                "fsdp",
                version=int(getattr(plugin, "fsdp_version", 1)),
                state_dict=str(getattr(kind, "name", kind) or ""),
            )
        kinds = module.DistributedType
        if state.distributed_type != kinds.MULTI_CPU or not _no_gpu():
            return
        if plugin is None and not is_true("ACCELERATE_USE_FSDP"):
            return
        _take_fsdp(module, state, plugin)

    acting.replaced.around(module.PartialState, "__init__", partial)
    acting.replaced.around(module.AcceleratorState, "__init__", whole)


def _take_fsdp(module: ModuleType, state: Any, plugin: Any) -> None:
    """As ``AcceleratorState`` does for processes with GPUs."""
    state.distributed_type = module.DistributedType.FSDP
    if plugin is not None and state._mixed_precision != "no":
        plugin.set_mixed_precision(state._mixed_precision)
    state.fsdp_plugin = plugin
    module.PartialState._shared_state["distributed_type"] = state.distributed_type


def is_true(variable: str) -> bool:
    """Whether a launcher has set this variable of the environment."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _launcher(acting: Acting, module: ModuleType) -> None:
    """``accelerate launch`` starts several processes where it sees several GPUs: here as well."""
    if "_validate_launch_command" not in vars(module):
        return

    def validated(original: Any, args: Any) -> Any:
        result = original(args)
        args, defaults = result[0], result[1]
        asked = getattr(args, "num_processes", None) or 0
        kinds = ("cpu", "multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm")
        chosen = [name for name in kinds if getattr(args, name, False)]
        if asked > 1 and defaults is None and not chosen and _no_gpu():
            args.multi_gpu = True
            chosen = ["multi_gpu"]
        acting.journal.tell("launcher", **_asked(args, defaults, chosen))
        return result

    acting.replaced.around(module, "_validate_launch_command", validated)


def _simple_launcher(acting: Acting, module: ModuleType) -> None:
    """``python -m accelerate.commands.launch``: a program, which nobody imports."""
    name = "prepare_simple_launcher_cmd_env"
    if name not in vars(module):
        return

    def prepared(original: Any, args: Any, *more: Any, **named: Any) -> Any:
        if acting.seen("launcher"):
            return original(args, *more, **named)
        chosen = ["cpu"] if getattr(args, "cpu", False) else []
        several = None if chosen else _launcher_of_several(args)
        if several is not None:
            chosen = ["multi_gpu"]
        acting.journal.tell("launcher", **_asked(args, None, chosen))
        if several is not None:
            args.multi_gpu = True
            several(args)
            raise SystemExit(0)  # in the place of the one process that would be started now
        return original(args, *more, **named)

    acting.replaced.around(module, name, prepared)


def _launcher_of_several(args: Any) -> Any:
    """What the program would call where it sees several GPUs; ``None`` where one process was asked
    for, where a config file says what to start, or where GPUs are there."""
    program = sys.modules["__main__"]
    configured = getattr(args, "config_file", None) is not None or os.path.isfile(
        getattr(program, "default_config_file", "")
    )
    if (getattr(args, "num_processes", None) or 0) < 2 or configured or not _no_gpu():
        return None
    return getattr(program, "multi_gpu_launcher", None)


def _asked(args: Any, defaults: Any, chosen: list[str]) -> Mapping[str, Any]:
    kind = getattr(defaults, "distributed_type", None)
    return {
        "processes": getattr(args, "num_processes", None) or 0,
        "machines": getattr(args, "num_machines", None) or 1,
        "chosen": chosen,
        "config_file": getattr(args, "config_file", None),
        "distributed_type": str(getattr(kind, "value", kind) or ""),
    }
