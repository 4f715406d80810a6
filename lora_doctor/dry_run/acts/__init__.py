"""What a guest does in a process of a dry run. Called before any code of the user's; what a file
here needs of torch, transformers or PEFT it is handed once the user has imported them."""

from __future__ import annotations

from lora_doctor.dry_run.acts import (
    accumulation,
    adapters,
    arguments,
    compiling,
    data,
    data_sets,
    devices,
    failures,
    folders,
    garbage,
    generation,
    gpu_facts,
    gradients,
    hub,
    lightning_files,
    lightning_validation,
    loading,
    loops,
    outputs,
    packages,
    processes,
    replicas,
    saved_adapters,
    saved_models,
    sets,
    several_adapters,
    sharding,
    tokenizers,
    trainer,
    triton_kernels,
    zero,
)
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.session import Session

#: In the order in which they are prepared; each says itself after which import it acts.
_ACTS = (garbage, failures, processes, folders, generation, outputs, lightning_files,
         lightning_validation, hub, devices,
         gpu_facts, arguments, compiling, loading, adapters, sharding, zero, saved_adapters,
         saved_models, replicas, data, data_sets, several_adapters, loops, gradients, trainer, sets,
         accumulation, tokenizers, triton_kernels)  # fmt: skip


def install(session: Session) -> Acting:
    """Prepare everything that a dry run does in this process; nothing is imported for it."""
    acting = Acting(session)
    packages.leave_out(acting)
    for act in _ACTS:
        act.prepare(acting)
    acting.hooks.install()
    return acting
