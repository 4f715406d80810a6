"""DeepSpeed on a machine without a GPU: its processes talk by gloo, and what it would compile is
done by torch. The model is copied before ZeRO cuts it into shards."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import processes, sharding, small_models
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.adam_in_torch import EXTENSIONS

#: Settings of DeepSpeed that need a GPU, and what they are here.
_OFF = ("fp16", "amp")


def prepare(acting: Acting) -> None:
    """Once torch sees no GPU, and on DeepSpeed, accelerate and transformers where they use it."""
    acting.after("deepspeed", lambda m: _initialized(acting, m))
    acting.after("deepspeed.comm.torch", lambda m: _without_shared_memory(acting, m))
    acting.after("deepspeed.ops.op_builder.builder", lambda m: _not_compiled(acting, m))
    acting.after("deepspeed.runtime.zero.parameter_offload", lambda m: _kept_whole(acting, m))
    acting.after("accelerate.state", lambda m: _backend(acting, m))
    acting.after("accelerate.utils.deepspeed", lambda m: _settings(acting, m))


def asked_for(arguments: Any) -> bool:
    """Whether a Trainer with these arguments trains by DeepSpeed, and it is installed."""
    asked = getattr(arguments, "deepspeed", None) or processes.is_true("ACCELERATE_USE_DEEPSPEED")
    return bool(asked) and importlib.util.find_spec("deepspeed") is not None


def bfloat16_on_cpus(acting: Acting, module: ModuleType) -> None:
    """``bf16=True`` is refused without a GPU, unless ``use_cpu`` is set, with which accelerate
    takes no DeepSpeed. ``module``: of ``TrainingArguments``."""
    name = "is_torch_bf16_gpu_available"
    if name in vars(module):
        acting.replaced.around(module, name, lambda original: _no_gpu() or original())


def _no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _backend(acting: Acting, module: ModuleType) -> None:
    """accelerate lets DeepSpeed start the processes' group, by the backend of a GPU."""
    if "_prepare_backend" not in vars(module.PartialState):
        return
    kinds = module.DistributedType

    def chosen(original: Any, state: Any, cpu: bool = False, *more: Any, **named: Any) -> Any:
        started = os.environ.get("LOCAL_RANK", "-1") != "-1"
        asked = processes.is_true("ACCELERATE_USE_DEEPSPEED")
        if asked and started and not cpu and _no_gpu() and asked_for(None):
            return "gloo", kinds.MULTI_CPU  # until accelerate makes it DEEPSPEED
        return original(state, cpu, *more, **named)

    acting.replaced.around(module.PartialState, "_prepare_backend", chosen)


def _settings(acting: Acting, module: ModuleType) -> None:
    def made(original: Any, config: Any, *arguments: Any, **named: Any) -> None:
        original(config, *arguments, **named)
        _for_cpu(acting, config.config)

    def sharded(original: Any, config: Any) -> Any:
        # What we load or construct is of this process alone, and no other one takes part in it.
        return not acting.in_contract and original(config)

    acting.replaced.around(module.HfDeepSpeedConfig, "__init__", made)
    acting.replaced.around(module.HfDeepSpeedConfig, "is_zero3", sharded)


def _for_cpu(acting: Acting, settings: Any) -> None:
    """Take out of DeepSpeed's settings what only a GPU, or a fast disk, can do."""
    if not isinstance(settings, dict) or not _no_gpu():
        return
    for name in _OFF:
        part = settings.get(name)
        if isinstance(part, dict) and part.get("enabled") is True:
            part["enabled"] = False
            acting.note("not-proven", f"DeepSpeed's {name} needs a GPU; it ran in float32")
    zero = settings.get("zero_optimization")
    for name in ("offload_optimizer", "offload_param"):
        part = zero.get(name) if isinstance(zero, dict) else None
        if isinstance(part, dict) and part.get("device") == "nvme":
            part["device"] = "cpu"
            acting.note("not-proven", f"{name} went to memory in the place of a disk")


def _without_shared_memory(acting: Acting, module: ModuleType) -> None:
    """gloo does what DeepSpeed would compile an extension for, which takes minutes."""
    if "build_shm_op" in vars(module):
        acting.replaced.around(module, "build_shm_op", lambda original: None)


def _not_compiled(acting: Acting, module: ModuleType) -> None:
    def load(original: Any, builder: Any, *arguments: Any, **named: Any) -> Any:
        extension = EXTENSIONS.get(getattr(builder, "NAME", ""))
        if extension is None or not _no_gpu():
            return original(builder, *arguments, **named)
        return extension

    acting.replaced.around(module.OpBuilder, "jit_load", load)


def _kept_whole(acting: Acting, module: ModuleType) -> None:
    """Tensors up to a size stay whole in each process. The small model's are compared with a size
    that is as much smaller, so that the same tensors do."""
    owner = module.DeepSpeedZeRoOffload
    if "mark_persistent_parameters" not in vars(owner):
        return

    def marked(original: Any, offload: Any, threshold: Any, *more: Any, **named: Any) -> Any:
        share, width = small_models.width_share(offload.module)
        if share < 1 and threshold != 10 * width:  # "auto" is ten times the width already
            threshold = int(threshold * share)
            offload.param_numel_persistence_threshold = threshold
        return original(offload, threshold, *more, **named)

    acting.replaced.around(owner, "mark_persistent_parameters", marked)


def _initialized(acting: Acting, module: ModuleType) -> None:
    if "initialize" not in vars(module):
        return

    def initialize(original: Any, *arguments: Any, **named: Any) -> Any:
        if acting.in_contract:
            return original(*arguments, **named)
        model = named.get("model", arguments[1] if len(arguments) > 1 else None)
        for key in ("config", "config_params"):
            if named.get(key) is not None:
                named[key] = _read(named[key])
                _for_cpu(acting, named[key])
        found = sharding.unsharded(acting)
        with acting.ours():  # the first states of the optimizer are made by a step of it
            if model is not None:
                with _gathered(module, model):
                    found.keep(model)
            result = original(*arguments, **named)
        if model is not None:
            found.classes[type(model).__name__] += 1
            engine = result[0]
            stage = getattr(engine, "zero_optimization_stage", None)
            sharding.tell(
                acting,
                "DeepSpeed",
                classes=dict(found.classes),
                zero_stage=stage() if callable(stage) else None,
            )
        return result

    acting.replaced.around(module, "initialize", initialize)


def _read(settings: Any) -> Any:
    """Settings as they were given, or out of the file that was named."""
    if not isinstance(settings, (str, os.PathLike)):
        return dict(settings) if isinstance(settings, Mapping) else settings
    try:
        with open(settings, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return settings  # DeepSpeed says it better, or knows another spelling


def _gathered(module: ModuleType, model: Any) -> Any:
    """A context in which the weights are whole in every process; each has to enter it."""
    shards = [one for one in model.parameters() if hasattr(one, "ds_id")]
    return module.zero.GatheredParameters(shards, modifier_rank=None)
