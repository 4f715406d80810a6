"""How evidence is gathered: what was asked for, and the same for all cases of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_doctor.engine.limits import Limits
from lora_doctor.results.budget import Budget
from lora_doctor.results.depth import STEPS, Depth
from lora_doctor.results.samples import Samples
from lora_doctor.static.adapter_files import AdapterFiles


@dataclass(frozen=True)
class Data:
    """Files of rows to be trained and evaluated on, how many of them are looked at, and who sees
    their texts."""

    training: Path
    evaluation: Path | None
    rows: int
    samples: Samples


@dataclass(frozen=True)
class Settings:
    """How evidence is gathered; the same for all cases of one run. ``depth`` is what was asked for;
    a training script is only read, whatever that is."""

    depth: Depth = "tiny"
    device: str = "auto"
    steps: int = STEPS
    limits: Limits = field(default_factory=Limits)
    batches: tuple[Mapping[str, Any], ...] | None = None
    #: Of a loaded module: see ``evidence.optimizer.read_optimizer``.
    optimizer: Any = None
    scheduler: Any = None
    planned_steps: int | None = None
    #: The saved adapter that is to be loaded onto the model.
    adapter: AdapterFiles | None = None
    #: Whether the set-up trains; one that only merges or uses a saved adapter does not.
    trains: bool = True
    #: Whether the memory plan is wanted; its rule asks by itself where there is a budget.
    memory: bool = False
    #: Training data whose supervision is to be looked at.
    data: Data | None = None
    #: What is asserted of numbers of the run.
    budgets: tuple[Budget, ...] = ()
