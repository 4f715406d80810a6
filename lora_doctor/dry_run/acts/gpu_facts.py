"""What a script asks torch about its GPU, on a machine that has none.

The answers are those of a GPU with bfloat16, as for scripts that are only read: what the script
decides by them is then what it decides where it will run. Libraries get torch's own answers, but
for one: which half precision a framework takes for ``auto``, or refuses, is a setting of the run.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.call_sites import is_of_guest, is_of_user

_NAME = "no GPU (dry run)"
_BYTES = 80 << 30
_CAPABILITY = (8, 0)
#: Counters that are reset, and what waits for a device: nothing happens.
_WITHOUT_EFFECT = ("reset_peak_memory_stats", "reset_max_memory_allocated", "ipc_collect",
                   "reset_max_memory_cached", "reset_accumulated_memory_stats",
                   "set_per_process_memory_fraction", "init")  # fmt: skip


def prepare(acting: Acting) -> None:
    """Once torch is there, and sees no GPU."""
    acting.after("torch", lambda module: _without_gpu(acting, module))
    acting.after("transformers.utils.import_utils", lambda module: _bfloat16(acting, module))


def _bfloat16(acting: Acting, module: ModuleType) -> None:
    """What transformers tells axolotl and LLaMA-Factory: it asks the GPU that is not here."""

    def answered(original: Any) -> bool:
        import torch

        if acting.in_contract or torch.cuda.is_available():
            return bool(original())
        if (library := _asked_by()) != "transformers":
            text = f"this machine has no GPU: {library} is told of one with bfloat16"
            acting.note("cpu", text, once="gpu facts")
        return True

    acting.replaced.around(module, "is_torch_bf16_gpu_available", answered)


def _asked_by() -> str:
    """The package, or the user's module, whose line calls what is replaced here."""
    frame = sys._getframe(1)
    while frame.f_back is not None and is_of_guest(frame.f_code.co_filename):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _without_gpu(acting: Acting, torch: ModuleType) -> None:
    if torch.cuda.is_available():
        return
    answers: dict[str, Any] = {
        "get_device_capability": _CAPABILITY,
        "get_device_name": _NAME,
        "get_device_properties": _properties(),
        "mem_get_info": (_BYTES, _BYTES),
        "is_bf16_supported": True,
        "memory_summary": _NAME,
        **dict.fromkeys(_WITHOUT_EFFECT),
    }
    for name, answer in answers.items():
        if callable(vars(torch.cuda).get(name)):
            acting.replaced.around(torch.cuda, name, _answering(acting, name, answer))


def _answering(acting: Acting, name: str, answer: Any) -> Any:
    def answered(original: Any, *arguments: Any, **named: Any) -> Any:
        if acting.in_contract or not _asked_by_user():
            return original(*arguments, **named)
        if name not in _WITHOUT_EFFECT:
            text = (
                "this machine has no GPU: the script is told of one with bfloat16 and 80 GiB "
                f"(torch.cuda.{name})"
            )
            acting.note("cpu", text, once="gpu facts")
        return answer

    return answered


def _properties() -> SimpleNamespace:
    """The fields of torch's own that scripts print or compare."""
    major, minor = _CAPABILITY
    return SimpleNamespace(
        name=_NAME,
        major=major,
        minor=minor,
        total_memory=_BYTES,
        multi_processor_count=108,
        is_integrated=0,
        is_multi_gpu_board=0,
        warp_size=32,
    )


def _asked_by_user() -> bool:
    """Whether a line of the user's calls, and no library on its behalf."""
    frame = sys._getframe(1)
    while frame is not None and is_of_guest(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and is_of_user(frame.f_code.co_filename)
