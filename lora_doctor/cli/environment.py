"""``lora-doctor env``: versions, devices and dtypes, ready to paste into a bug report."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.installed.devices import gather_devices
from lora_doctor.static.installed.environment import Environment, gather_environment
from lora_doctor.text import size_in_words

#: Looking at devices imports torch and may start CUDA; slower is broken.
_TIME_LIMIT = 120.0


def describe(output_format: str, *, devices: bool = True) -> str:
    """The environment as text or as JSON. Devices are looked at in a child process."""
    environment = gather_environment()
    found = _devices() if devices else None
    if output_format == "json":
        return json.dumps({**asdict(environment), "devices": found}, indent=2, sort_keys=True)
    return _as_text(environment, found)


def devices_as_json() -> dict[str, Any]:
    """What runs in the child: the devices of this machine."""
    return asdict(gather_devices())


def _devices() -> dict[str, Any]:
    with Worker(preload=(), cuda=True) as worker:
        outcome = worker.run("lora_doctor.cli.environment:devices_as_json", time_limit=_TIME_LIMIT)
    if outcome.failure:
        return {"reason": f"{outcome.failure.kind}: {outcome.failure.message}"}
    return dict(outcome.value)


def _as_text(environment: Environment, devices: dict[str, Any] | None) -> str:
    lines = [
        f"lora-doctor {environment.lora_doctor}",
        f"python {environment.python}",
        f"platform {environment.platform}",
    ]
    for name, version in environment.packages.items():
        lines.append(f"{name} {version or 'not installed'}")
    if devices is None:
        return "\n".join(lines)
    if devices.get("reason"):
        return "\n".join([*lines, f"devices unknown: {devices['reason']}"])
    for device in devices["accelerators"]:
        memory = f", {size_in_words(device['memory'], 0)}" if device["memory"] else ""
        bf16 = "bfloat16" if device["bf16"] else "no bfloat16"
        lines.append(f"{device['kind']}:{device['index']} {device['name']}{memory}, {bf16}")
    if not devices["accelerators"]:
        lines.append("no GPU")
    lines += [f"cpu {name}: {reason or 'works'}" for name, reason in devices["cpu_dtypes"].items()]
    lines += [
        f"bitsandbytes on {name}: {reason or 'works'}"
        for name, reason in devices["bitsandbytes"].items()
    ]
    return "\n".join(lines)
