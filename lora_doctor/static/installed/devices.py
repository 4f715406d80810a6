"""What the hardware can do, tried. Imports torch: call it in a child process."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from lora_doctor.text import single_line


@dataclass(frozen=True)
class Accelerator:
    """One device beside the CPU.

    `kind` is `cuda` or `mps`; `memory` is in bytes, None where the driver does not tell;
    `capability` is CUDA's (major, minor).
    """

    kind: str
    index: int
    name: str
    memory: int | None
    capability: tuple[int, int] | None
    bf16: bool


@dataclass(frozen=True)
class Devices:
    """What this machine can compute on, tried rather than assumed.

    `cpu_dtypes` maps `float32`, `bfloat16`, `float16` to None when a product and its gradient were
    computed on the CPU, else to the reason why not. `bitsandbytes` maps `cpu` and `cuda` to None
    when a matrix was quantized to 4 bits there, else to the reason. `torch` is None, and `reason`
    says why, when torch cannot be imported.
    """

    torch: str | None
    accelerators: tuple[Accelerator, ...]
    cpu_dtypes: dict[str, str | None]
    bitsandbytes: dict[str, str | None]
    reason: str | None = None


def gather_devices() -> Devices:
    """Try what the hardware can do. Imports torch and bitsandbytes: call it in a child process.

    Never raises for what is broken: the reason is in the result.
    """
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - a broken torch raises anything; it is the finding
        return Devices(None, (), {}, {}, reason=f"torch cannot be imported: {_one_line(error)}")
    accelerators = _accelerators(torch)
    return Devices(
        torch=str(torch.__version__),
        accelerators=accelerators,
        cpu_dtypes={
            name: _multiplies(torch, getattr(torch, name))
            for name in ("float32", "bfloat16", "float16")
        },
        bitsandbytes=_bitsandbytes(torch, cuda=any(a.kind == "cuda" for a in accelerators)),
    )


def _accelerators(torch: Any) -> tuple[Accelerator, ...]:
    found = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = (int(properties.major), int(properties.minor))
            # torch.cuda.is_bf16_supported() means the current device, and counts emulation.
            # ROCm reports gfx numbers as capability; every ROCm device that torch serves has bf16.
            bf16 = bool(torch.version.hip) or capability >= (8, 0)
            found.append(
                Accelerator(
                    "cuda", index, properties.name, properties.total_memory, capability, bf16
                )
            )
    mps = getattr(torch.backends, "mps", None)
    if mps is not None and mps.is_available():
        memory = getattr(getattr(torch, "mps", None), "recommended_max_memory", lambda: None)()
        bf16 = _multiplies(torch, torch.bfloat16, "mps") is None
        found.append(Accelerator("mps", 0, platform.machine(), memory, None, bf16))
    return tuple(found)


def _multiplies(torch: Any, dtype: Any, device: str = "cpu") -> str | None:
    """None when a product and its gradient can be computed in `dtype` on `device`, else why not."""
    try:
        weight = torch.ones(4, 4, dtype=dtype, device=device, requires_grad=True)
        product = torch.nn.functional.linear(weight.detach(), weight)
        product.sum().backward()
        right = bool((product.detach() == 4).all()) and bool((weight.grad == 4).all())
    except Exception as error:  # noqa: BLE001 - whatever the backend raises is the answer
        return _one_line(error)
    return None if right else "computes a wrong product"


def _bitsandbytes(torch: Any, *, cuda: bool) -> dict[str, str | None]:
    devices = ("cpu", "cuda") if cuda else ("cpu",)
    try:
        import bitsandbytes.functional as bnb
    except Exception as error:  # noqa: BLE001 - its import loads native code that fails in many ways
        reason = (
            "not installed"
            if isinstance(error, ModuleNotFoundError) and error.name == "bitsandbytes"
            else f"cannot be imported: {_one_line(error)}"
        )
        return dict.fromkeys(devices, reason)
    return {device: _quantizes(torch, bnb, device) for device in devices}


def _quantizes(torch: Any, bnb: Any, device: str) -> str | None:
    """None when a matrix survives a round trip through 4 bits on `device`, else why not."""
    try:
        matrix = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
        packed, state = bnb.quantize_4bit(matrix, quant_type="nf4")
        distance = float((bnb.dequantize_4bit(packed, state) - matrix).abs().max())
    except Exception as error:  # noqa: BLE001 - whatever the backend raises is the answer
        return _one_line(error)
    # Neighbouring nf4 levels lie at most 0.31 apart in [-1, 1], so rounding moves 0.16 at most.
    return None if distance < 0.2 else f"4-bit round trip is off by {distance:.2f}"


def _one_line(error: BaseException) -> str:
    text = single_line(str(error))
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
