"""Modules that PEFT itself adds to ``modules_to_save`` for a kind of task, whatever the model calls
its head: asked of the installed PEFT with a model of one layer."""

from __future__ import annotations

import contextlib
from typing import Any


def added_by_peft(task_type: Any) -> frozenset[str]:
    """Names such as ``classifier`` and ``score`` for a classifier of sequences. Every adapter of
    such a task is saved with all of them in its config; one that the model lacks is no slip of
    anybody's. Empty for a task for which PEFT adds none, or asks more of a model.
    """
    if not task_type:
        return frozenset()
    import peft
    import torch

    with contextlib.suppress(Exception), torch.device("meta"):
        config = peft.LoraConfig(r=1, target_modules=["0"], task_type=task_type)
        wrapped = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(1, 1)), config)
        # Before PEFT 0.11 the names are the wrapper's and not the config's.
        return frozenset(config.modules_to_save or ()) | frozenset(
            getattr(wrapped, "modules_to_save", None) or ()
        )
    return frozenset()
