"""How a script is started: a launcher, the number of processes, and what accelerate's config has
them share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_doctor.recipe.cut import Cut
from lora_doctor.static.place import Place

_DDP = ("MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")


@dataclass(frozen=True)
class Launch:
    """One command that starts the script, or accelerate's config beside it."""

    #: ``accelerate``, ``torchrun`` or ``deepspeed``; empty for ``python``.
    launcher: str
    #: The processes that are started; ``None`` where that is not said.
    processes: int | None
    #: The command on one line; of a config that no command names, its path.
    code: str
    #: Where it stands.
    place: Place
    #: Whether it is a command of a file, not a comment or a config that lies there.
    certain: bool
    #: accelerate's config; empty without.
    config: Mapping[str, Any] = field(default_factory=dict)
    #: DeepSpeed's config that this one names; empty without.
    deepspeed_file: Mapping[str, Any] = field(default_factory=dict)
    #: Where the command ends too early.
    cuts: tuple[Cut, ...] = ()

    @property
    def several(self) -> bool:
        """Whether more than one process is started for certain."""
        return (self.processes or 0) > 1

    @property
    def fsdp_config(self) -> Mapping[str, Any]:
        """FSDP's part of accelerate's config; empty without."""
        return part_of(self.config, "fsdp_config")

    @property
    def fsdp(self) -> int:
        """FSDP's version; 0 without."""
        if self.config and str(self.config.get("distributed_type", "")).upper() != "FSDP":
            return 0
        if not self.config and not re.search(r"\s--use[_-]fsdp\b", self.code):
            return 0
        version = self.fsdp_config.get("fsdp_version", 1)
        return version if isinstance(version, int) else 1

    @property
    def deepspeed(self) -> Mapping[str, Any]:
        """DeepSpeed's part of accelerate's config; empty without."""
        kind = str(self.config.get("distributed_type", "")).upper()
        return part_of(self.config, "deepspeed_config") if kind == "DEEPSPEED" else {}

    @property
    def zero_stage(self) -> int:
        """ZeRO's stage; 0 where accelerate's config does not say."""
        stage = self.deepspeed.get("zero_stage", 0)
        stage = part_of(self.deepspeed_file, "zero_optimization").get("stage", stage)
        return stage if isinstance(stage, int) else 0

    @property
    def ddp(self) -> bool:
        """Whether each process has the whole model and gradients are averaged."""
        kind = str(self.config.get("distributed_type", "")).upper()
        by_option = re.search(r"\s--use[_-](?:fsdp|deepspeed)\b", self.code)
        return self.launcher != "deepspeed" and not by_option and kind in ("", *_DDP)


def is_certain(launch: Launch, started: Sequence[Launch], alike: Callable[[Launch], bool]) -> bool:
    """Whether a program is sure to be started so: by a command of a file, and no command of a file
    starts it in another way. ``alike``: whether a launch has what is found of this one."""
    return launch.certain and all(alike(one) for one in started if one.certain)


def part_of(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a config; empty where there is none."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}
