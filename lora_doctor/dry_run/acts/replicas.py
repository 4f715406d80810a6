"""Whether processes that hold the whole model each have the same adapters after the same steps: the
gradients of what DDP does not see are not averaged."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import sharding
from lora_doctor.dry_run.acts.acting import STEPS, Acting


def prepare(acting: Acting) -> None:
    """Once torch has optimizers."""
    acting.after("torch.optim.optimizer", lambda m: _optimizers(acting, m))
    acting.after("torch.utils.checkpoint", lambda m: _checkpoints(acting, m))


def _optimizers(acting: Acting, module: ModuleType) -> None:
    if not os.environ.get("RANK", "").isdigit():
        return
    taken = [0]

    def stepped(optimizer: Any, arguments: Any, named: Any) -> None:
        if acting.in_contract:
            return
        taken[0] += 1
        if taken[0] == STEPS and not sharding.unsharded(acting).classes:
            with acting.ours():
                _tell(acting, optimizer)

    module.register_optimizer_step_post_hook(stepped)


def _tell(acting: Acting, optimizer: Any) -> None:
    import torch

    with torch.no_grad():
        total = sum(
            float(parameter.detach().double().abs().sum())
            for group in optimizer.param_groups
            for parameter in group["params"]
        )
    acting.journal.tell("trainable_sum", sum=total)


def _checkpoints(acting: Acting, module: ModuleType) -> None:
    """Which kind of checkpointing runs: the reentrant one does not go with every DDP."""
    told: set[bool] = set()

    def checkpoint(original: Any, *arguments: Any, **named: Any) -> Any:
        reentrant = named.get("use_reentrant") is not False
        if not acting.in_contract and reentrant not in told:
            told.add(reentrant)
            acting.journal.tell("checkpointing", reentrant=reentrant)
        return original(*arguments, **named)

    acting.replaced.around(module, "checkpoint", checkpoint)
